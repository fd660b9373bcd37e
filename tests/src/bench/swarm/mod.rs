//! A swarm of real nodes on links of known speed, against the lower bound for any scheme, and against none.
//!
//! Every node is a `wherry` process in a network namespace of its own with a shaped port, every site a bridge behind a
//! shaped uplink, the origin a docker-registry behind it. Clients ask each node's gateway for all layers at the same
//! instant. All of it on one machine, so the share of its cores that a run took is part of the figures.

mod beside;
mod bound;
mod churn;
mod cpu;
mod herd;
mod interrupt;
mod links;
mod meanwhile;
mod nodes;
mod plot;
mod probe;
mod pull;
mod rates;
mod report;
mod round;
mod scenario;

use anyhow::{Context as _, Result, bail, ensure};

use crate::backed::Backed;
use crate::table::Table;
use report::Report;
use round::How;
use scenario::{Changes, Scenario};

/// What is measured if nothing is named.
const USUAL: [&str; 4] = ["S1", "S1b", "S2", "S4"];

/// More is more than a machine's addresses or patience allow.
const MAX_LAYERS: usize = 64;

/// How a run of this benchmark is asked for.
pub(crate) const HELP: &str = "Usage: wherry-bench swarm [SCENARIO]… [OPTION]…

Real nodes in network namespaces with shaped links, against the lower bound that the measured goodput leaves, beside
every node by itself and a docker-registry as pull-through cache. Prints a table; beside the programs, in bench/, are
swarm-SCENARIO.json and swarm-SCENARIO.svg. Needs root.

Scenarios, S1, S1b, S2 and S4 if none is named:
  S1   cold herd: 64 nodes, 16 MB in 4 layers, uplink 4 Mbit/s, ports 20 Mbit/s
  S1b  scarce upload: S1 with an uplink of 50 Mbit/s
  S2   one seeder: 32 nodes, 64 MB, ports 10 Mbit/s, the uplink is cut once the first node has the image
  S3   four sites of 12 nodes, uplinks whose rate changes every 10 s
  S4   warm neighbour: 10 MB in 4 layers, 1 Gbit/s, one of two nodes has it
  S5   churn: S1, every 3 s a random node is killed and comes back 3 s later
  S5b  churn of leaders: S5, every third kill hits who takes most from the origin
  S6   mixed: S1, five nodes at a tenth of the speed

Options:
  --nodes N        nodes of each site
  --layers N       layers of the image, all of the same length
  --scale X        all rates divided by X and the times between kills and changes multiplied, for machines that cannot
                   carry them: ratios stay what they are
  --rounds N       how often each scenario is measured; the table shows the middle one
  --limit SECONDS  when a round is given up, in place of 8 times the bound
  --wherry-only    without the measurements beside
  --log FILTER     what nodes log, for WHERRY_LAB_KEEP=1";

/// Measures what the arguments ask for; goals go to the table.
pub(crate) fn run(arguments: &[&str], goals: &mut Table) -> Result<()> {
    let (scenarios, changes, how) = parse(arguments)?;
    interrupt::catch()?;
    let _backed = Backed::new();
    let folder = report::folder()?;
    let mut report = Report::new();
    for scenario in scenarios {
        let scenario = scenario.changed(&changes);
        eprintln!("… {}: {}", scenario.name, scenario.about);
        let outcome = round::measure(scenario, &how)?;
        report.add(&outcome, goals, &folder)?;
    }
    println!("{}", report.text());
    Ok(())
}

fn parse(arguments: &[&str]) -> Result<(Vec<Scenario>, Changes, How)> {
    let (mut changes, mut how, mut names) = (Changes::default(), How::default(), Vec::new());
    let mut rest = arguments.iter();
    while let Some(&word) = rest.next() {
        let mut value = || rest.next().copied().with_context(|| format!("{word} needs a value\n\n{HELP}"));
        match word {
            "--nodes" => changes.nodes = Some(count(word, value()?, 2, links::MAX_NODES)?),
            "--layers" => changes.layers = Some(count(word, value()?, 1, MAX_LAYERS)?),
            "--rounds" => changes.rounds = Some(count(word, value()?, 1, usize::MAX)?),
            "--scale" => changes.scale = Some(positive(word, value()?)?),
            "--limit" => how.limit = Some(positive(word, value()?)?),
            "--wherry-only" => how.wherry_only = true,
            "--log" => how.log = Some(value()?.to_owned()),
            _ if word.starts_with('-') => bail!("unknown option {word}\n\n{HELP}"),
            name => names.push(name),
        }
    }
    if names.is_empty() {
        names.extend(USUAL);
    }
    let find = |name: &str| {
        let found = Scenario::all().into_iter().find(|scenario| scenario.name == name);
        found.with_context(|| format!("there is no scenario '{name}'\n\n{HELP}"))
    };
    Ok((names.into_iter().map(find).collect::<Result<_>>()?, changes, how))
}

fn count(option: &str, value: &str, least: usize, most: usize) -> Result<usize> {
    let count = value.parse().ok().filter(|count| (least..=most).contains(count));
    count.with_context(|| format!("{option} takes a number of at least {least}, not '{value}'"))
}

fn positive(option: &str, value: &str) -> Result<f64> {
    let number: f64 = value.parse().with_context(|| format!("{option} takes a number, not '{value}'"))?;
    ensure!(number.is_finite() && number > 0.0, "{option} takes a number above 0, not '{value}'");
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_the_usual_and_nonsense_is_refused() -> Result<()> {
        let (scenarios, _, how) = parse(&[])?;
        assert_eq!(scenarios.iter().map(|scenario| scenario.name).collect::<Vec<_>>(), USUAL);
        assert!(!how.wherry_only);
        let (scenarios, changes, how) = parse(&["S6", "--nodes", "8", "--scale", "2.5", "--wherry-only"])?;
        assert_eq!((scenarios[0].name, scenarios.len()), ("S6", 1));
        assert_eq!((changes.nodes, changes.scale, how.wherry_only), (Some(8), Some(2.5), true));
        for wrong in
            [&["S9"][..], &["--nodes"], &["--nodes", "1"], &["--scale", "0"], &["--scale", "nan"], &["--x"]]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        Ok(())
    }
}
