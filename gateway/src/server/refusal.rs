//! Answers that are not what was asked for.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

/// Why a request is not answered with what it asked for, and what the client can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind of refusal this is, which decides status and code.
    pub kind: RefusalKind,
    /// What was tried, why it failed and what to do, for a person.
    pub message: String,
    /// When it is worth asking again.
    pub retry_after: Option<Duration>,
}

/// The kinds of refusal, each with its status and the code of the distribution specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalKind {
    /// No such manifest, here or anywhere that could be asked: 404.
    ManifestUnknown,
    /// No such blob: 404.
    BlobUnknown,
    /// No such repository: 404.
    NameUnknown,
    /// The repository or origin is not well-formed: 400.
    NameInvalid,
    /// The digest is not well-formed: 400.
    DigestInvalid,
    /// The manifest is not one that may be passed on: 502, since the fault is the origin's.
    ManifestInvalid,
    /// The manifest that the client sends is not one that is stored: 400.
    ManifestRefused,
    /// The manifest names what is not in the repository: 400.
    ManifestBlobUnknown,
    /// What the client sends is longer than anything that is stored: 413.
    TooLong,
    /// The tag is not well-formed: 400.
    TagInvalid,
    /// No such upload, or not any more: 404.
    BlobUploadUnknown,
    /// The upload cannot go on like this: 400.
    BlobUploadInvalid,
    /// There are not as many bytes as were announced, or more ranges are asked for than are given at once: 400.
    SizeInvalid,
    /// Credentials are needed: 401.
    Unauthorized,
    /// The client may not have it, or this node's credentials do not suffice: 403.
    Denied,
    /// Somebody asks too often: 429.
    TooManyRequests,
    /// The range starts behind the end: 416.
    RangeInvalid,
    /// The method or endpoint is not supported: 405.
    Unsupported,
    /// There is no such endpoint: 404.
    NoEndpoint,
    /// It cannot be had now, but perhaps later: 503.
    Unavailable,
    /// The origin gave a wrong answer: 502.
    BadOrigin,
    /// There is no room to take it in: 507.
    NoSpace,
    /// A fault of this node: 500.
    Internal,
}

impl RefusalKind {
    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::ManifestUnknown
            | Self::BlobUnknown
            | Self::NameUnknown
            | Self::NoEndpoint
            | Self::BlobUploadUnknown => StatusCode::NOT_FOUND,
            Self::NameInvalid
            | Self::DigestInvalid
            | Self::TagInvalid
            | Self::ManifestRefused
            | Self::ManifestBlobUnknown
            | Self::BlobUploadInvalid
            | Self::SizeInvalid => StatusCode::BAD_REQUEST,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ManifestInvalid | Self::BadOrigin => StatusCode::BAD_GATEWAY,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The code in the error body: the specification's where it has one.
    pub const fn code(self) -> &'static str {
        match self {
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestInvalid | Self::ManifestRefused | Self::TagInvalid => "MANIFEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::RangeInvalid | Self::SizeInvalid | Self::TooLong => "SIZE_INVALID",
            Self::Unsupported | Self::NoEndpoint => "UNSUPPORTED",
            Self::Unavailable => "UNAVAILABLE",
            Self::BadOrigin => "BAD_ORIGIN",
            Self::NoSpace => "NO_SPACE",
            Self::Internal => "UNKNOWN",
        }
    }
}

impl Refusal {
    /// A refusal without a time to ask again.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }

    /// The same with a time to ask again, sent as `Retry-After` in whole seconds, at least one.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The error body that the specification asks for.
    pub(super) fn body(&self) -> Bytes {
        let body =
            json!({ "errors": [{ "code": self.kind.code(), "message": self.message, "detail": null }] });
        Bytes::from(body.to_string())
    }
}
