//! Why the node does not do what it was asked.

use serde::{Deserialize, Serialize};

/// Why something could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of failure it is, for scripts.
    pub code: ErrorCode,
    /// What was tried, on what, and why it failed.
    pub message: String,
    /// What the user can do about it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// What was asked for makes no sense, or the archive is damaged.
    BadRequest,
    /// It is not here, and nobody who was asked has it.
    NotFound,
    /// An origin refuses it without other credentials.
    Denied,
    /// Neither peers nor origin can be reached, or none of them sends what is right.
    Unavailable,
    /// The disk or its budget is full.
    NoSpace,
    /// Somebody had it stopped.
    Cancelled,
    /// Something that goes on at this moment stands in the way.
    Conflict,
    /// The node is about to end.
    Stopping,
    /// The node itself failed.
    Internal,
}

impl ApiError {
    /// A failure without advice.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl ErrorCode {
    /// The HTTP status that carries it.
    pub(super) const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Cancelled | Self::Conflict => 409,
            Self::Internal => 500,
            Self::Unavailable => 502,
            Self::Stopping => 503,
            Self::NoSpace => 507,
        }
    }
}
