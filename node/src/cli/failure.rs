//! How a command ends when it does not end well.

use std::io;
use std::process::ExitCode;

use super::output::note;
use crate::config::ConfigError;
use crate::control::ClientError;
use crate::identity::IdentityError;
use crate::node::NodeError;

/// Why a command ends early.
#[derive(Debug)]
pub(super) enum Failure {
    /// Whoever read the output has seen enough.
    ClosedPipe,
    /// The command line or the configuration is wrong.
    Usage(String),
    /// Ctrl-C or SIGTERM.
    Interrupted {
        /// The exit status that says which.
        status: u8,
        /// What is so now.
        message: String,
        /// What can be done about it.
        hint: Option<String>,
    },
    /// What was asked for failed.
    Failed {
        /// What failed and why.
        message: String,
        /// What can be done about it.
        hint: Option<String>,
    },
}

impl Failure {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None }
    }

    pub(super) fn with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: Some(hint.into()) }
    }

    /// Says what is wrong on standard error, if need be for scripts: one line, an object with `error` and `hint`.
    pub(super) fn report(self, json: bool) -> ExitCode {
        let (code, kind, message, hint) = match self {
            Self::ClosedPipe => return ExitCode::SUCCESS,
            Self::Usage(message) => (2, "error", message, None),
            Self::Interrupted { status, message, hint } => (status, "interrupted", message, hint),
            Self::Failed { message, hint } => (1, "error", message, hint),
        };
        note(&match (json, hint) {
            (true, hint) => serde_json::json!({ "error": message, "hint": hint }).to_string(),
            (false, Some(hint)) => format!("{kind}: {message}\n hint: {hint}"),
            (false, None) => format!("{kind}: {message}"),
        });
        ExitCode::from(code)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::new(error.to_string()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Local(error) => error.into(),
            error => Self::Failed { message: error.to_string(), hint: error.hint().map(str::to_owned) },
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        if error.is_io() { io::Error::from(error).into() } else { Self::new(error.to_string()) }
    }
}
