//! `wherry wan`.

use super::args::{WanArgs, WanCommand};
use super::environment::Environment;
use super::failure::Failure;
use super::output::{harmless, print, print_json};
use crate::config::units::show_size;
use crate::control::api::{WanRequest, WanStatus, WanSummary};
use crate::limits::show_rate;

pub(super) async fn run(args: &WanArgs, environment: &Environment) -> Result<(), Failure> {
    let client = args.node.client(environment);
    let paused = match args.command {
        WanCommand::Status => {
            let status = client.wan().await?;
            return if args.node.json { print_json(&status) } else { print(&page(&status)) };
        }
        WanCommand::Pause => true,
        WanCommand::Resume => false,
    };
    let summary = client.pause(&WanRequest { paused }).await?;
    if args.node.json { print_json(&summary) } else { print(&told(&summary, paused)) }
}

/// What became of a pause or its end.
pub(super) fn told(summary: &WanSummary, paused: bool) -> String {
    let site = harmless(&summary.site);
    let mut out = match (paused, &summary.status.why) {
        (true, _) => format!(
            "site {site} pauses: nothing comes from outside or goes there until 'wherry wan resume'\n"
        ),
        (false, None) => format!("site {site} goes on\n"),
        (false, Some(why)) => format!("site {site} pauses no more, but {}\n", harmless(why)),
    };
    out += &match (summary.neighbours, summary.agree) {
        (0, _) => "no other node of the site is connected; they hear of it when they are\n".to_owned(),
        (all, agree) if all == agree => match all {
            1 => "the one other node of the site that is connected knows\n".to_owned(),
            all => format!("all {all} other nodes of the site that are connected know\n"),
        },
        (1, _) => {
            "the one other node of the site that is connected does not know: look at its clock and log\n"
                .to_owned()
        }
        (all, agree) => format!(
            "{agree} of {all} other nodes of the site that are connected {}; look at the clocks and logs of those that \
             do not\n",
            if agree == 1 { "knows" } else { "know" }
        ),
    };
    out
}

/// `wherry wan status`.
pub(super) fn page(status: &WanStatus) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| out += &format!("{name:<9} {}\n", harmless(&value));
    match &status.why {
        Some(why) => line("now", why.clone()),
        None => line("now", "bytes may come from outside".to_owned()),
    }
    let rate = |rate: Option<u64>| rate.map_or_else(|| "no limit".to_owned(), show_rate);
    line("down", rate(status.down) + &shared(status.taking));
    line("up", rate(status.up));
    let budget = status.budget.map_or_else(String::new, |budget| format!(" of {}", show_size(budget)));
    line(
        "today",
        format!("{}{budget}, {} by way of this node", show_size(status.spent), show_size(status.spent_here)),
    );
    let hours = if status.windows.is_empty() { "always".to_owned() } else { status.windows.join(" and ") };
    line("hours", hours);
    out
}

fn shared(taking: u64) -> String {
    match taking {
        0 => String::new(),
        1 => ", all of it for this node now".to_owned(),
        many => format!(", shared by {many} nodes now"),
    }
}
