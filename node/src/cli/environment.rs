//! Everything that a command takes from the process it runs in, so that tests can bring their own.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;

use super::failure::Failure;
use super::output::{harmless, note};
use crate::config::{
    ConfigFile, DEFAULT_FILE, FILE_VARIABLE, MAX_FILE, PREFIX, Problem, Sources, Surroundings,
    unknown_variables,
};

/// The surroundings of a command.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    /// Variables that start with `WHERRY_`.
    pub(super) variables: Vec<(String, String)>,
    /// What defaults depend on.
    pub(super) surroundings: Surroundings,
    /// Whether standard output is a terminal.
    pub(super) stdout_is_terminal: bool,
    /// Whether standard error is a terminal that can redraw lines.
    pub(super) stderr_is_terminal: bool,
}

impl Environment {
    pub(super) fn of_process() -> Self {
        let variables = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect();
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(Into::into);
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            variables,
            surroundings: Surroundings {
                root: rustix::process::geteuid().is_root(),
                home: path("HOME"),
                xdg_data_home: path("XDG_DATA_HOME"),
            },
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal() && !dumb,
        }
    }

    /// Variables that look like settings and are none.
    pub(super) fn unknown_variables(&self) -> Vec<Problem> {
        unknown_variables(&self.variables)
    }

    /// Says on standard error which these are.
    pub(super) fn warn_of_unknown_variables(&self) {
        for problem in self.unknown_variables() {
            note(&format!("warning: {}", harmless(&problem.to_string())));
        }
    }

    /// All sources of the configuration. `file` is that of `--config`.
    pub(super) fn sources(
        &self,
        file: Option<&str>,
        flags: &[(&'static str, Vec<String>)],
    ) -> Result<Sources, Failure> {
        Ok(Sources {
            file: self.file(file)?,
            variables: self.variables.clone(),
            flags: flags.to_vec(),
            surroundings: self.surroundings.clone(),
        })
    }

    /// The same for commands that want to know of a node only where it is: a file that cannot be read, because it may
    /// be root's, says nothing.
    pub(super) fn lenient_sources(&self, flags: &[(&'static str, Vec<String>)]) -> Sources {
        Sources {
            file: self.file(None).unwrap_or_default(),
            variables: self.variables.clone(),
            flags: flags.to_vec(),
            surroundings: self.surroundings.clone(),
        }
    }

    /// The configuration file: the one that is named has to exist, the default one may.
    fn file(&self, named: Option<&str>) -> Result<Option<ConfigFile>, Failure> {
        let variable = self.variables.iter().find(|(name, _)| name == FILE_VARIABLE);
        let named = named.or(variable.map(|(_, path)| path.as_str()).filter(|path| !path.is_empty()));
        let path = named.unwrap_or(DEFAULT_FILE);
        match read(Path::new(path)) {
            Ok(text) => Ok(Some(ConfigFile { path: path.to_owned(), text })),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(Failure::Usage(format!("the configuration file {path} cannot be read: {error}")))
            }
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {MAX_FILE} bytes"),
        ));
    }
    Ok(text)
}
