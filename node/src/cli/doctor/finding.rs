//! What was found, and what can be done about it.

use serde::Serialize;

use crate::cli::output::harmless;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// A reason why a pull does not go through wherry.
    Wrong,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) about: &'static str,
    pub(super) verdict: Verdict,
    pub(super) says: String,
    /// What to do.
    pub(super) hint: Option<String>,
    /// Whether it says that a runtime does not know of the gateway at all, which may be meant where others do.
    #[serde(skip)]
    pub(super) unset: bool,
}

/// What was found about one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Findings {
    about: &'static str,
    pub(super) all: Vec<Finding>,
}

impl Findings {
    pub(super) const fn new(about: &'static str) -> Self {
        Self { about, all: Vec::new() }
    }

    pub(super) fn ok(&mut self, says: impl Into<String>) {
        self.add(Verdict::Ok, says.into(), None);
    }

    pub(super) fn note(&mut self, says: impl Into<String>, hint: Option<String>) {
        self.add(Verdict::Note, says.into(), hint);
    }

    pub(super) fn wrong(&mut self, says: impl Into<String>, hint: impl Into<String>) {
        self.add(Verdict::Wrong, says.into(), Some(hint.into()));
    }

    pub(super) fn add(&mut self, verdict: Verdict, says: String, hint: Option<String>) {
        self.all.push(Finding { about: self.about, verdict, says, hint, unset: false });
    }

    /// Adds that a runtime does not know of the gateway; a note where that is not needed.
    pub(super) fn unset(&mut self, says: impl Into<String>, hint: impl Into<String>, needed: bool) {
        let verdict = if needed { Verdict::Wrong } else { Verdict::Note };
        let (says, hint) = (says.into(), Some(hint.into()));
        self.all.push(Finding { about: self.about, verdict, says, hint, unset: true });
    }

    /// Makes notes of what is wrong, since the runtime need not know of the gateway.
    pub(super) fn excuse(&mut self) {
        for finding in &mut self.all {
            if finding.verdict == Verdict::Wrong && finding.unset {
                finding.verdict = Verdict::Note;
            }
        }
    }

    /// Whether something of it is wrong.
    pub(super) fn is_wrong(&self) -> bool {
        self.all.iter().any(|finding| finding.verdict == Verdict::Wrong)
    }
}

impl Finding {
    /// A line, and one more that says what to do.
    pub(super) fn shown(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Wrong => "wrong",
        };
        let mut out = format!("{verdict:<5}  {:<10}  {}\n", self.about, harmless(&self.says));
        if let Some(hint) = &self.hint {
            out += &format!("{:19}hint: {}\n", "", harmless(hint));
        }
        out
    }
}
