//! What may be seen of the limits.

use serde::{Deserialize, Serialize};

use super::book::Limited;

/// The links that lead out of the site, as `/status` and `wherry wan status --json` tell of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WanStatus {
    /// Which limit keeps bytes from coming into the site now.
    pub limited: Option<Limited>,
    /// The same in plain words.
    pub why: Option<String>,
    /// How fast bytes may come into the site, in bytes a second.
    pub down: Option<u64>,
    /// How fast bytes may leave the site, in bytes a second.
    pub up: Option<u64>,
    /// How many bytes may come into the site in a day.
    pub budget: Option<u64>,
    /// When bytes may cross; always, if there is none.
    pub windows: Vec<String>,
    /// Bytes that have come into the site today, as far as this node knows.
    pub spent: u64,
    /// Those of them that came by way of this node.
    pub spent_here: u64,
    /// Bytes that came by way of this node since its start.
    pub received: u64,
    /// Bytes that left by way of this node since its start.
    pub sent: u64,
    /// Among how many nodes the rate is shared now; 0 if this one takes nothing.
    pub taking: u64,
}
