//! Nodes that are killed and come back while the others pull.

use anyhow::Result;

use super::nodes::Nodes;
use super::rates::mix;
use super::scenario::{AIMED, AWAY, Churn, KILL_EVERY};

/// How long a leader is looked for before it is killed, in seconds without a scale.
const AIM: f64 = 1.0;

/// Who is away and who is next.
pub(crate) struct Killer {
    churn: Churn,
    // For how many times as long as without a scale.
    scale: f64,
    seed: u64,
    kills: usize,
    away: Vec<(usize, f64)>,
    /// What each node had from the origin a moment before a kill that is aimed.
    taken: Option<Vec<u64>>,
    nodes: usize,
    /// Bytes that killed nodes had taken from the origin.
    pub(crate) lost: u64,
    /// Who was killed when, and whether it was aimed at.
    pub(crate) log: Vec<(f64, usize, bool)>,
}

impl Killer {
    /// Nobody is away yet. Rates that are divided by `scale` make all take as many times as long, and so do the times between
    /// kills: a leader's death costs as much of the image as it would, and as many leaders die.
    pub(crate) fn new(churn: Churn, seed: u64, nodes: usize, scale: f64) -> Self {
        Self { churn, scale, seed, kills: 0, away: Vec::new(), taken: None, nodes, lost: 0, log: Vec::new() }
    }

    /// Kills and revives whoever is due, at so many seconds from the start.
    pub(crate) fn tick(&mut self, now: f64, nodes: &mut Nodes<'_>) -> Result<()> {
        if self.churn == Churn::None {
            return Ok(());
        }
        let due = |away: &(usize, f64)| away.1 <= now;
        for (node, _) in self.away.extract_if(.., |away| due(away)) {
            nodes.revive(node)?;
        }
        let next = self.next_kill();
        let aimed = self.churn == Churn::Leaders && (self.kills + 1).is_multiple_of(AIMED);
        if aimed && self.taken.is_none() && now >= next - AIM * self.scale {
            self.taken = Some(self.look(nodes));
        }
        if now < next {
            return Ok(());
        }
        self.kills += 1;
        let leader = self.taken.take().and_then(|before| self.leader(&before, nodes));
        let victim = leader.unwrap_or_else(|| self.somebody());
        self.lost += nodes.taken_from_origin(victim);
        nodes.kill(victim)?;
        self.away.push((victim, self.back(now)));
        self.log.push((now, victim, leader.is_some()));
        Ok(())
    }

    fn next_kill(&self) -> f64 {
        (self.kills + 1) as f64 * KILL_EVERY * self.scale
    }

    /// When a node comes back that is killed now.
    fn back(&self, now: f64) -> f64 {
        now + AWAY * self.scale
    }

    /// Any node that is not away.
    fn somebody(&self) -> usize {
        let here: Vec<usize> =
            (0..self.nodes).filter(|node| self.away.iter().all(|away| away.0 != *node)).collect();
        here[(mix(self.seed + self.kills as u64) % here.len().max(1) as u64) as usize]
    }

    fn look(&self, nodes: &Nodes<'_>) -> Vec<u64> {
        (0..self.nodes).map(|node| nodes.taken_from_origin(node)).collect()
    }

    /// Who has taken most from the origin since then, if anybody took anything.
    fn leader(&self, before: &[u64], nodes: &Nodes<'_>) -> Option<usize> {
        let now = self.look(nodes);
        let grown = now.iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).enumerate();
        grown.max_by_key(|(_, bytes)| *bytes).filter(|(_, bytes)| *bytes > 0).map(|(node, _)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_multiplies_the_times_between_kills_and_until_a_node_is_back() {
        let times = |kills, scale| {
            let killer = Killer { kills, ..Killer::new(Churn::Leaders, 1, 64, scale) };
            (killer.next_kill(), killer.back(killer.next_kill()))
        };
        assert_eq!(times(0, 1.0), (KILL_EVERY, KILL_EVERY + AWAY));
        for kills in 0..3 {
            let (kill, back) = times(kills, 1.0);
            assert_eq!(times(kills, 8.0), (8.0 * kill, 8.0 * back));
        }
    }
}
