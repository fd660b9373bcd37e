//! Origins as a source of chunks.

use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use wherry_gateway::origin::OriginError;
use wherry_proto::Digest;

use super::{OriginBlob, OriginFailure, Origins, Route};

/// The longest that an origin which limits how often it is asked is waited for.
const MAX_WAIT: Duration = Duration::from_secs(5);

impl Origins for wherry_gateway::origin::Origins {
    fn open(
        &self,
        route: &Route,
        digest: Digest,
        from: u64,
    ) -> BoxFuture<'_, Result<OriginBlob, OriginFailure>> {
        let route = route.clone();
        Box::pin(async move {
            let opened = self.blob(&route.host, &route.repository, &digest, from).await;
            let blob = opened.map_err(|error| failure(&error))?;
            let total = blob.total();
            let bytes = blob.map(|piece| piece.map_err(|error| failure(&error)));
            Ok(OriginBlob { total, bytes: bytes.boxed() })
        })
    }

    fn doubt(&self, route: &Route, digest: &Digest) {
        Self::doubt(self, &route.host, digest);
    }

    fn rate(&self, route: &Route) -> Option<u64> {
        Self::rate(self, &route.host)
    }
}

fn failure(error: &OriginError) -> OriginFailure {
    let retry = match error {
        OriginError::Interrupted { .. } => true,
        OriginError::RateLimited { retry_after, .. } => retry_after.is_none_or(|wait| wait <= MAX_WAIT),
        _ => false,
    };
    let away = matches!(error, OriginError::Unreachable { .. } | OriginError::Interrupted { .. });
    OriginFailure { message: error.to_string(), retry, away }
}
