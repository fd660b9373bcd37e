//! Whether an origin lets somebody else read.

use http::{HeaderMap, Method, StatusCode};
use url::Url;

use super::credentials::Found;
use super::http::Target;
use super::retry::Failure;
use super::token::{PULL, challenges};
use super::{Credential, OriginError, Origins};
use crate::name::{Host, Repository};

/// What an origin says of somebody who wants to read a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Whoever it is may read.
    May,
    /// Whoever it is may not.
    MayNot,
    /// There is no such repository, or it is hidden from whoever asks.
    NoRepository,
}

impl Origins {
    /// Whether an origin lets whoever has this credential, or anybody without one, pull from a repository. Asked there and
    /// then, once, with nothing of this node's own; mirrors are not asked.
    ///
    /// # Errors
    /// When the origin does not say, as one that is out of reach.
    pub async fn admits(
        &self,
        host: &Host,
        repository: &Repository,
        credential: Option<&Credential>,
    ) -> Result<Admission, OriginError> {
        let what = format!("the tags of {repository}");
        let target = Target { host, repository, what: &what };
        match self.ask_for(target, credential).await {
            Ok(()) => Ok(Admission::May),
            Err(Failure::Final(OriginError::Unauthorized { .. })) => Ok(Admission::MayNot),
            Err(Failure::Final(OriginError::NotFound { .. })) => Ok(Admission::NoRepository),
            Err(Failure::Final(error) | Failure::Passing(error, _)) => Err(error),
        }
    }

    async fn ask_for(&self, target: Target<'_>, credential: Option<&Credential>) -> Result<(), Failure> {
        let (scheme, api) = (self.http.scheme(target.host), target.host.api_host());
        // Needs the right to pull, and costs next to nothing.
        let url = format!("{scheme}://{api}/v2/{}/tags/list?n=1", target.repository);
        let url = Url::parse(&url).map_err(|error| target.bad(format!("{url} is no URL: {error}")))?;
        let headers = HeaderMap::new();
        let mut response = self.http.follow(target, &Method::GET, &url, &headers, None).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let found = Found { credential: credential.cloned(), problems: Vec::new() };
            let grant = self.http.grant(target, &challenges(&response), &found, PULL).await?;
            response = self.http.follow(target, &Method::GET, &url, &headers, Some(&grant.header)).await?;
        }
        self.http.judge(target, &Method::GET, response, credential.is_some()).await?;
        self.http.answered.note(target.host);
        Ok(())
    }
}
