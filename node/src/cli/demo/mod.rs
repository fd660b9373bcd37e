//! `wherry demo`: what wherry is for, seen to happen on this machine.
//!
//! A 'cloud' whose gateway serves an image that holds the wherry binary itself, three nodes of a site that pull it
//! through their gateways at the same time, then the cloud is killed, and a fourth node joins and still gets it. All
//! of them are processes of this very program on loopback, with ports that were free and folders that go at the end.

mod image;
mod process;
mod report;
mod runtime;
mod stage;

use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::timeout;

use super::args::DemoArgs;
use super::environment::Environment;
use super::failure::Failure;
use super::output::{note, print, print_json};
use super::stop::Stop;
use report::{Report, Row};
use stage::Stage;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How many nodes of the site pull while the cloud is there.
const TOGETHER: usize = 3;

pub(super) fn run(args: &DemoArgs, environment: &Environment) -> Result<(), Failure> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stop = Stop::new()?;
        let mut stage = Stage::new()?;
        let outcome = tokio::select! {
            outcome = timeout(LIMIT, play(&mut stage)) => outcome.unwrap_or_else(|_| {
                Err(anyhow::anyhow!("it is not through after {} s", LIMIT.as_secs()))
            }),
            status = stop.asked() => {
                stage.clear().await?;
                let message = "the demo is over, and nothing is left of it".to_owned();
                return Err(Failure::Interrupted { status, message, hint: None });
            }
        };
        let told = match &outcome {
            Ok(report) => tell(report, args, environment),
            Err(_) => {
                note(&stage.logs());
                Ok(())
            }
        };
        if args.keep && told.is_ok() {
            note(&stage.tour());
            stop.asked().await;
        }
        // Whatever happened, nothing is left.
        stage.clear().await?;
        told?;
        match outcome?.broken() {
            None => Ok(()),
            Some(broken) => Err(Failure::with_hint(
                format!("not as promised: {broken}"),
                "this is a fault of wherry or of this machine: run it again with WHERRY_LOG=debug and --keep",
            )),
        }
    })
}

fn tell(report: &Report, args: &DemoArgs, environment: &Environment) -> Result<(), Failure> {
    if args.json { print_json(report) } else { print(&report.table(environment.stdout_is_terminal)) }
}

async fn play(stage: &mut Stage) -> anyhow::Result<Report> {
    let image = stage.make_image().await?;
    stage.start_cloud(&image).await?;

    stage.start_first_node().await?;
    for number in 2..=TOGETHER {
        stage.admit_and_start(number).await?;
    }
    stage.say(&format!("{TOGETHER} nodes of the site pull it through their gateways at the same time"));
    let pulls: Vec<_> = (1..=TOGETHER).map(|number| stage.pull(number, &image)).collect();
    let mut rows: Vec<Row> = futures::future::try_join_all(pulls).await?;

    stage.kill_cloud().await?;
    let last = TOGETHER + 1;
    stage.admit_and_start(last).await?;
    stage.say(&format!("node {last} pulls it through its gateway, with no cloud to ask"));
    rows.push(stage.pull(last, &image).await?);
    Ok(Report::new(&image, TOGETHER, rows, stage.seconds()))
}
