//! Nodes of one network, made as an operator makes them: `init`, `admit`, `join`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::lab::Lab;
use crate::node::{Options, Wherry, command};
use crate::process::run;
use crate::wait::wait_until;

/// How long two nodes on loopback may take to find each other.
const CONNECTED: Duration = Duration::from_secs(20);

/// An operator's network.
pub struct Network {
    operator: PathBuf,
}

impl Network {
    /// A new network.
    ///
    /// # Errors
    /// When `wherry network init` fails.
    pub fn new(lab: &Lab) -> Result<Self> {
        let operator = lab.folder("operator")?;
        run(command(&operator)?.args(["network", "init"]))?;
        Ok(Self { operator })
    }

    /// Admits a node that does not run.
    ///
    /// # Errors
    /// When `wherry network` fails.
    pub fn admit(&self, node: &Wherry) -> Result<()> {
        let shown = node.json(&["network", "show"])?;
        let peer_id = shown["peer_id"].as_str().with_context(|| format!("network show: {shown}"))?;
        let admitted = run(command(&self.operator)?.args(["network", "admit", peer_id, "--json"]))?;
        let admitted: Value = serde_json::from_str(&admitted).context("network admit --json")?;
        let line = admitted["line"].as_str().with_context(|| format!("network admit: {admitted}"))?;
        node.run(&["network", "join", line]).map(drop)
    }

    /// A ready member that is connected to the others.
    ///
    /// # Errors
    /// When it cannot be admitted or does not become ready.
    pub fn member(&self, lab: &Lab, name: &str, mut options: Options, known: &[&Wherry]) -> Result<Wherry> {
        for other in known {
            options.bootstrap.extend(other.addresses()?.peers.iter().cloned());
        }
        let mut node = Wherry::new(lab, name, options)?;
        self.admit(&node)?;
        node.up()?;
        for other in known {
            let peer_id = &other.addresses()?.peer_id;
            wait_until(&format!("{name} is connected to {peer_id}"), CONNECTED, || {
                Ok(node.json(&["peers"])?["peers"].to_string().contains(peer_id))
            })?;
        }
        Ok(node)
    }
}
