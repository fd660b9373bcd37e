//! Sends images on to registries.

use std::time::{Duration, Instant};

use wherry_gateway::{Descriptor, Manifest};
use wherry_proto::Digest;

use super::Node;
use super::backend::image_error;
use crate::control::Events;
use crate::control::api::{ApiError, ErrorCode, PublishEvent, PublishRequest, PublishSummary};
use crate::images::publish::PublishEvents;
use crate::images::{MAX_WAIT, PullEvents};
use crate::transfer::Progress;

/// Tells a client how it goes.
struct Told(Events<PublishEvent>);

impl PullEvents for Told {
    fn resolved(&self, _manifest: &Manifest) {}

    fn started(&self, _blob: &Descriptor, _whole: bool, _here: u64) {}

    fn progress(&self, blob: &Digest, progress: Progress) {
        self.0.tell_if_free(PublishEvent::Brings { digest: *blob, here: progress.linked });
    }

    fn done(&self, _blob: &Digest, _here: bool, _progress: Progress) {}
}

impl PublishEvents for Told {
    fn blob(&self, digest: &Digest, sent: u64, size: u64, present: bool) {
        self.0.tell_if_free(PublishEvent::Sent { digest: *digest, sent, size, present });
    }

    fn waits(&self, why: &str) {
        self.0.tell_if_free(PublishEvent::Waits { why: why.to_owned() });
    }
}

impl Node {
    pub(super) async fn publish_image(
        &self,
        request: PublishRequest,
        events: Events<PublishEvent>,
    ) -> Result<PublishSummary, ApiError> {
        let begun = Instant::now();
        let from = self.to_pull(&request.reference).await?;
        let to = match &request.to {
            Some(to) => self.parse(to)?,
            None => from.clone(),
        };
        if to.host().is_site() {
            let message = format!("{to} is at this site itself, and no registry has it");
            return Err(ApiError::new(ErrorCode::BadRequest, message)
                .hint("say which name it is to have: 'wherry publish IMAGE REGISTRY/REPOSITORY:TAG'"));
        }
        let wait = request.wait_seconds.map(|wait| Duration::from_secs(wait).min(MAX_WAIT));
        let (pulling, publishing) = (Told(events.clone()), Told(events));
        let published = self.images.publish(&from, &to, wait, &pulling, &publishing).await;
        let published = published.map_err(image_error)?;
        Ok(PublishSummary {
            reference: from.to_string(),
            to: to.to_string(),
            digest: published.digest,
            sent: published.sent,
            present: published.present,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }
}
