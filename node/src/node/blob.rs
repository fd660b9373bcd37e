//! Parts of images, for whoever looks into them.

use std::io::{self, Write as _};

use tokio::io::DuplexStream;
use tokio_util::io::SyncIoBridge;

use super::Node;
use super::backend::{platform, stopping};
use crate::control::api::{ApiError, BlobRequest, ErrorCode};
use crate::images::ImageName;

impl Node {
    /// Writes the configuration or a layer of an image that is here, as it is on the disk.
    pub(super) async fn give_blob(&self, request: BlobRequest, out: DuplexStream) -> Result<(), ApiError> {
        let platform = platform(request.platform.as_deref())?;
        let local = self.find(&request.reference, platform.as_ref()).await?;
        let (name, digest) = (local.name.to_string(), request.digest);
        let mut blobs = local.image.image().into_iter().flat_map(|image| image.blobs());
        let Some(wanted) = blobs.find(|blob| blob.digest == digest) else {
            let message = format!("{name} has no part {digest}");
            return Err(ApiError::new(ErrorCode::NotFound, message)
                .hint(format!("'wherry inspect {name}' shows what it is made of")));
        };
        let pull = match &local.name {
            ImageName::Reference(_) => format!("'wherry pull {name}' brings it"),
            ImageName::Unnamed(_) => "import the image again".to_owned(),
        };
        let Some(blob) = self.store.get(&digest) else {
            let (what, hint) = match wanted.is_foreign() {
                true => (", which registries do not pass on,", "its maker says where it is".to_owned()),
                false => ("", pull),
            };
            let message = format!("not all of {name} is here: {digest}{what} is missing");
            let error = ApiError::new(ErrorCode::NotFound, message).hint(hint);
            return Err(self.with_moved(&local.name, error).await);
        };
        let mut out = SyncIoBridge::new(out);
        let work = move || {
            let given = blob.checked_reader().and_then(|mut reader| io::copy(&mut reader, &mut out));
            given.and_then(|_| out.flush()).map_err(|error| match blob.is_lost() {
                true => {
                    let message =
                        format!("{digest} of {name} is damaged: its bytes on the disk have another digest. It is set aside");
                    ApiError::new(ErrorCode::Internal, message).hint(format!("{pull} again"))
                }
                false => ApiError::new(ErrorCode::Internal, format!("{digest} of {name} cannot be read: {error}")),
            })
        };
        tokio::task::spawn_blocking(work).await.map_err(stopping)?
    }
}
