//! Limits of the links that lead out of a site: rates, budgets, hours and pauses, held by the site as a whole.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use wherry_tests::blobs::{Image, blob_is_right, push_image};
use wherry_tests::http::{Answer, Request, get};
use wherry_tests::lab::Lab;
use wherry_tests::network::Network;
use wherry_tests::node::{Options, Wherry, command, refused};
use wherry_tests::registry::{self, Registry};
use wherry_tests::relay::Relay;
use wherry_tests::wait::{wait_for, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// For so long nothing may come while nothing is to come.
const QUIET: Duration = Duration::from_secs(3);

/// 8 Mbit/s, in bytes a second.
const RATE: u64 = 1_000_000;

/// What may have left the origin and lie in sockets when the nodes stop reading.
const IN_SOCKETS: u64 = 1 << 20;

/// More than what manifests take, which count like all that comes in.
const MANIFESTS: u64 = 64 << 10;

struct Site {
    network: Network,
    relay: Relay,
    origin: Registry,
    lab: Lab,
}

fn site() -> Result<Site> {
    let lab = Lab::new()?;
    let origin = Registry::start(&lab, "origin", registry::Options::default())?;
    let relay = Relay::start(origin.addr())?;
    Ok(Site { network: Network::new(&lab)?, relay, origin, lab })
}

impl Site {
    fn image(&self, repository: &str, seed: u64, layer: u64) -> Result<Image> {
        push_image(self.origin.addr(), repository, "1", seed, &[layer])
    }

    /// At noon, so that no day ends while a test runs.
    fn options(&self, limits: &[&str]) -> Result<Options> {
        let hour = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 3600 % 24;
        let mut options = Options::origin(self.relay.host());
        options.environment.push(("TZ".into(), format!("LAB{}", hour as i64 - 12)));
        options.more.extend(limits.iter().map(|limit| (*limit).to_owned()));
        Ok(options)
    }

    fn node(&self, name: &str, limits: &[&str], known: &[&Wherry]) -> Result<Wherry> {
        self.network.member(&self.lab, name, self.options(limits)?, known)
    }
}

fn wan(node: &Wherry) -> Result<Value> {
    node.json(&["wan", "status"])
}

fn is_limited_by(node: &Wherry, limit: &str) -> Result<bool> {
    Ok(wan(node)?["limited"]["by"] == limit)
}

/// Asks for the last bytes of a layer, which are not here.
fn ask_for_the_end(gateway: SocketAddr, image: &Image) -> Result<Answer> {
    let layer = &image.layers[0];
    let path = format!("/v2/{}/blobs/{}", image.repository, layer.digest);
    let range = format!("bytes={}-{}", layer.size - 100, layer.size - 1);
    Request::new(gateway, "GET", &path).header("Range", range).send_and_read()
}

/// That an answer says what holds it up, until when, and what can be done.
fn is_clear(answer: &Answer, words: &[&str], retry: std::ops::Range<u64>) -> Result<()> {
    let text = answer.text();
    ensure!(answer.status == 503, "{} {text}", answer.status);
    ensure!(answer.error_code().as_deref() == Some("UNAVAILABLE"), "{text}");
    for word in words {
        ensure!(text.contains(word), "{word} is missing: {text}");
    }
    let after: u64 = answer.header("retry-after").context("no Retry-After")?.parse()?;
    ensure!(retry.contains(&after), "Retry-After: {after}");
    Ok(())
}

/// That nothing leaves the origin for a while.
fn is_quiet(relay: &Relay) -> Result<()> {
    let (before, start) = (relay.sent_total(), Instant::now());
    wait_until("a while has passed", SOON, || {
        let more = relay.sent_total() - before;
        ensure!(more <= IN_SOCKETS, "{more} bytes more have come");
        Ok(start.elapsed() > QUIET)
    })
}

#[test]
fn a_rate_is_held_by_two_leaders_of_one_site_together() -> Result<()> {
    const LAYER: u64 = 8 << 20;
    // More than manifests: its layer comes.
    const BEGUN: u64 = 512 << 10;
    // Less than what is left of either when the other begins.
    const SHARED: u64 = 6 << 20;
    let site = site()?;
    let images = [site.image("lab/one", 80, LAYER)?, site.image("lab/two", 81, LAYER)?];
    let limits = ["--wan-down", "8Mbit/s"];
    let one = site.node("one", &limits, &[])?;
    let two = site.node("two", &limits, &[&one])?;
    let references = images.each_ref().map(|image| image.reference(site.relay.host()));
    let begun = Instant::now();
    let mut pulls = [
        one.begin("pull-one", &["pull", &references[0]])?,
        two.begin("pull-two", &["pull", &references[1]])?,
    ];
    let start =
        wait_for("something has come", SOON, || Ok((site.relay.sent_total() > 0).then(Instant::now)))?;
    // What a node has read it says itself: the relay counts what fills its sockets, some MiB, as sent.
    let read = || -> Result<[u64; 2]> {
        let own = |node| wan(node)?["received"].as_u64().context("received");
        Ok([own(&one)?, own(&two)?])
    };
    // One may begin seconds before the other, alone: shares are of what comes later.
    let before = wait_for("both read", SOON, || {
        let read = read()?;
        Ok(read.iter().all(|own| *own >= BEGUN).then_some(read))
    })?;
    let shares = wait_for("a good part more has come", SOON, || {
        let read = read()?;
        let more = [read[0] - before[0], read[1] - before[1]];
        Ok((more[0] + more[1] >= SHARED).then_some(more))
    })?;
    for own in shares {
        let own = own as f64 / shares.iter().sum::<u64>() as f64;
        assert!((0.3..0.7).contains(&own), "one of them has {own} of the rate: {shares:?} after {before:?}");
    }
    for pull in &mut pulls {
        ensure!(pull.wait_exit(SOON)?.success(), "{}", pull.tail());
    }
    // When the first byte came is known from two sides: a machine under load sees it late.
    let rate = |since: Instant| (2 * LAYER) as f64 / since.elapsed().as_secs_f64() / RATE as f64;
    let (most, least) = (rate(start), rate(begun));
    assert!(least < 1.1, "{least} of the rate at least");
    assert!(most > 0.75, "{most} of the rate at most");
    for (node, image) in [&one, &two].into_iter().zip(&images) {
        assert!(blob_is_right(node.gateway()?, &image.repository, &image.layers[0])?);
    }
    assert!(wan(&one)?["spent"].as_u64().context("spent")? >= LAYER);
    Ok(())
}

#[test]
fn a_budget_stops_the_whole_site_survives_a_restart_and_says_so() -> Result<()> {
    const LAYER: u64 = 16 << 20;
    const BUDGET: u64 = 2 << 20;
    // What is read at once, and may be beyond the budget.
    const PIECE: u64 = 1 << 20;
    let site = site()?;
    let image = site.image("lab/noise", 82, LAYER)?;
    let reference = image.reference(site.relay.host());
    let limits = ["--wan-down", "8Mbit/s", "--wan-budget", "2MiB"];
    let mut node = site.node("node", &limits, &[])?;
    let other = site.node("other", &limits, &[&node])?;
    let pull = node.begin("pull", &["pull", &reference])?;
    wait_until("the budget is used up", SOON, || is_limited_by(&node, "budget"))?;
    wait_until("the other node knows", SOON, || is_limited_by(&other, "budget"))?;
    is_quiet(&site.relay)?;
    let spent = wan(&node)?["spent"].as_u64().context("spent")?;
    assert!((BUDGET..BUDGET + PIECE).contains(&spent), "{spent} bytes");
    // Manifests are spent and are no blob's bytes; what fills the sockets has been sent and is not spent. How much that is
    // the kernel decides, by how evenly it was read.
    let sent = site.relay.sent_total();
    assert!((spent - MANIFESTS..LAYER).contains(&sent), "{sent} bytes sent, {spent} spent");
    wait_until("the pull says what it waits for", SOON, || {
        let told = pull.stderr()?;
        Ok(told.contains("waiting: ") && told.contains("wan_budget"))
    })?;

    node.stop()?;
    node.up()?;
    assert!(is_limited_by(&node, "budget")?);
    let status = node.json(&["status"])?;
    assert_eq!(status["store"]["partial_blobs"], 1, "what has come is kept: {status}");
    for node in [&node, &other] {
        let answer = ask_for_the_end(node.gateway()?, &image)?;
        is_clear(&answer, &["wan_budget", "2MiB", "the next day begins"], 3600..86_400)?;
    }
    is_quiet(&site.relay)?;
    let metrics = get(node.addresses()?.status, "/metrics")?.text();
    assert!(metrics.contains("wherry_wan_limited{by=\"budget\"} 1\n"), "{metrics}");
    Ok(())
}

#[test]
fn a_pause_on_one_node_stops_the_reading_of_another_and_a_resume_lets_it_go_on_where_it_was() -> Result<()> {
    const LAYER: u64 = 8 << 20;
    let site = site()?;
    let image = site.image("lab/noise", 83, LAYER)?;
    let reference = image.reference(site.relay.host());
    site.relay.pace(RATE);
    let mut one = site.node("one", &[], &[])?;
    let two = site.node("two", &[], &[&one])?;
    let mut pull = two.begin("pull", &["pull", &reference])?;
    wait_until("a quarter is there", SOON, || Ok(site.relay.sent_total() >= LAYER / 4))?;
    let said = one.run(&["wan", "pause"])?;
    assert!(said.contains("pauses") && said.contains("the one other node"), "{said}");
    assert!(is_limited_by(&two, "pause")?, "it holds at once");
    is_quiet(&site.relay)?;
    let sent = site.relay.sent_total();
    assert!(sent < LAYER / 2, "{sent} bytes");
    wait_until("the pull says what it waits for", SOON, || {
        Ok(pull.stderr()?.contains("waiting: this site has taken nothing from outside since"))
    })?;
    for node in [&one, &two] {
        is_clear(&ask_for_the_end(node.gateway()?, &image)?, &["'wherry wan resume'", "since"], 1..3600)?;
    }
    // Nor is a client given the part that is here, and then nothing for as long as the pause may last.
    let path = format!("/v2/{}/blobs/{}", image.repository, image.layers[0].digest);
    is_clear(&get(two.gateway()?, &path)?, &["'wherry wan resume'"], 1..3600)?;

    // It holds for those who come later, and across restarts.
    let three = site.node("three", &[], &[&two])?;
    wait_until("a node that joins knows", SOON, || is_limited_by(&three, "pause"))?;
    one.stop()?;
    one.up()?;
    assert!(is_limited_by(&one, "pause")?);

    let said = three.run(&["wan", "resume"])?;
    assert!(said.contains("goes on"), "{said}");
    ensure!(pull.wait_exit(SOON)?.success(), "{}", pull.tail());
    assert!(blob_is_right(two.gateway()?, "lab/noise", &image.layers[0])?);
    let all = site.relay.sent_total();
    // A chunk that was half here, and what lay in sockets.
    assert!(all < LAYER + 2 * IN_SOCKETS, "{all} bytes of {LAYER}");
    assert!(wan(&two)?["limited"].is_null());
    Ok(())
}

#[test]
fn what_came_today_is_known_after_a_kill_where_nothing_is_limited() -> Result<()> {
    const LAYER: u64 = 10 << 20;
    let site = site()?;
    let image = site.image("lab/noise", 87, LAYER)?;
    site.relay.pace(RATE);
    let mut node = site.node("node", &[], &[])?;
    node.run(&["pull", &image.reference(site.relay.host())])?;
    let before = wan(&node)?["spent_here"].as_u64();
    assert!(before >= Some(LAYER), "{before:?}");
    node.kill()?;
    node.up()?;
    // What came in the last seconds a kill may take along.
    let after = wan(&node)?["spent_here"].as_u64();
    assert!(after >= Some(LAYER / 5), "{after:?} of {before:?}");
    node.run(&["rm", &image.reference(site.relay.host())])?;
    node.run(&["pull", &image.reference(site.relay.host())])?;
    let before = wan(&node)?["spent_here"].as_u64();
    node.stop()?;
    node.up()?;
    assert_eq!(wan(&node)?["spent_here"].as_u64(), before);
    Ok(())
}

#[test]
fn a_kill_gives_back_hardly_any_of_a_budget() -> Result<()> {
    // Written down every so many bytes.
    const PART: u64 = BUDGET / 100;
    const BUDGET: u64 = 16 << 20;
    // Less than comes in the seconds after which it is written down in any case.
    const SPENT: u64 = 4 * RATE;
    // What comes while a slow disk writes.
    const MEANWHILE: u64 = RATE;
    let site = site()?;
    let image = site.image("lab/noise", 88, BUDGET)?;
    site.relay.pace(RATE);
    let mut node = site.node("node", &["--wan-budget", "16MiB"], &[])?;
    let _pull = node.begin("pull", &["pull", &image.reference(site.relay.host())])?;
    let before = wait_for("some of the budget is spent", SOON, || {
        Ok(wan(&node)?["spent_here"].as_u64().filter(|spent| *spent >= SPENT))
    })?;
    node.kill()?;
    node.up()?;
    let after = wan(&node)?["spent_here"].as_u64().context("spent_here")?;
    assert!(after + PART + MEANWHILE >= before, "{after} of {before}");
    Ok(())
}

#[test]
fn nobody_takes_over_from_a_leader_that_pauses_and_the_site_still_takes_one_copy() -> Result<()> {
    const LAYER: u64 = 6 << 20;
    let site = site()?;
    let image = site.image("lab/noise", 86, LAYER)?;
    let reference = image.reference(site.relay.host());
    site.relay.pace(RATE);
    let one = site.node("one", &[], &[])?;
    let two = site.node("two", &[], &[&one])?;
    let mut pulls =
        [one.begin("pull-one", &["pull", &reference])?, two.begin("pull-two", &["pull", &reference])?];
    wait_until("a third is there", SOON, || Ok(site.relay.sent_total() >= LAYER / 3))?;
    two.run(&["wan", "pause"])?;
    // Longer than a leader may stand still.
    let (sent, start) = (site.relay.sent_total(), Instant::now());
    wait_until("a leader that stands still would be dead", SOON, || {
        Ok(start.elapsed() > Duration::from_secs(8))
    })?;
    assert!(site.relay.sent_total() - sent <= IN_SOCKETS);
    for pull in &mut pulls {
        ensure!(pull.runs()?, "{}", pull.tail());
    }
    one.run(&["wan", "resume"])?;
    for (node, pull) in [&one, &two].into_iter().zip(&mut pulls) {
        ensure!(pull.wait_exit(SOON)?.success(), "{}", pull.tail());
        assert!(blob_is_right(node.gateway()?, "lab/noise", &image.layers[0])?);
    }
    let all = site.relay.sent_total();
    assert!(all < LAYER + 2 * IN_SOCKETS, "{all} bytes of {LAYER}");
    Ok(())
}

#[test]
fn outside_its_hours_a_site_takes_manifests_alone_and_says_when_it_takes_more() -> Result<()> {
    let site = site()?;
    let image = site.image("lab/noise", 84, 1 << 20)?;
    let node = site.node("node", &["--wan-window", "01:00-05:00", "--wan-window", "22:00-23:00"], &[])?;
    assert_eq!(get(node.gateway()?, "/v2/lab/noise/manifests/1")?.status, 200);
    let path = format!("/v2/lab/noise/blobs/{}", image.layers[0].digest);
    let answer = get(node.gateway()?, &path)?;
    is_clear(
        &answer,
        &["wan_window", "01:00-05:00 and 22:00-23:00", "next at"],
        9 * 3600 - 120..10 * 3600 + 1,
    )?;
    let pull = node.begin("pull", &["pull", &image.reference(site.relay.host())])?;
    wait_until("the pull says what it waits for", SOON, || Ok(pull.stderr()?.contains("waiting: ")))?;
    assert_eq!(site.relay.sent_total(), 0);
    let status = node.run(&["wan", "status"])?;
    assert!(status.contains("hours     01:00-05:00 and 22:00-23:00"), "{status}");

    let open = site.node("open", &["--wan-window", "10:00-14:00"], &[])?;
    open.run(&["pull", &image.reference(site.relay.host())])?;
    Ok(())
}

/// How long a node at another site takes for an image that one node holds, and what both say of it.
fn carried(holder: &[&str], taker: &[&str]) -> Result<(Duration, Wherry, Wherry, Site, Image)> {
    const LAYER: u64 = 4 << 20;
    let mut site = site()?;
    let image = site.image("lab/noise", 85, LAYER)?;
    let reference = image.reference(site.relay.host());
    let holder = site.node("holder", &[&["--site", "town"], holder].concat(), &[])?;
    holder.run(&["pull", &reference])?;
    let taker = site.node("taker", &[&["--site", "hut"], taker].concat(), &[&holder])?;
    taker.run(&["inspect", &reference]).err().context("it is not here yet")?;
    let path = format!("/v2/lab/noise/manifests/{}", image.manifest);
    assert_eq!(get(taker.gateway()?, &path)?.status, 200);
    site.origin.stop()?;
    let start = Instant::now();
    let pulled = taker.json(&["pull", &reference])?;
    let took = start.elapsed();
    ensure!(pulled["from_peers"].as_u64() >= Some(LAYER), "{pulled}");
    assert!(blob_is_right(taker.gateway()?, "lab/noise", &image.layers[0])?);
    Ok((took, holder, taker, site, image))
}

/// The time that 4 MiB take, but for the last chunk or two and what finding a peer takes.
const AT_RATE: std::ops::Range<Duration> = Duration::from_millis(3_500)..Duration::from_millis(9_000);

#[test]
fn chunks_from_another_site_come_at_the_takers_rate_and_count() -> Result<()> {
    let (took, holder, taker, _site, _image) = carried(&[], &["--wan-down", "8Mbit/s"])?;
    assert!(AT_RATE.contains(&took), "{took:?}");
    let (received, sent) = (wan(&taker)?["received"].as_u64(), wan(&holder)?["sent"].as_u64());
    assert!(received >= Some(4 << 20) && sent >= Some(4 << 20), "{received:?} {sent:?}");
    Ok(())
}

#[test]
fn chunks_for_another_site_leave_at_the_givers_rate() -> Result<()> {
    let (took, ..) = carried(&["--wan-up", "8Mbit/s"], &[])?;
    assert!(AT_RATE.contains(&took), "{took:?}");
    Ok(())
}

#[test]
fn nonsense_in_limits_is_refused_at_start_all_of_it_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let data = lab.folder("node")?;
    let mut up = command(&data)?;
    up.args(["up", "--wan-down", "fast", "--wan-up", "4Mb/s", "--wan-budget", "0"]);
    up.args(["--wan-window", "25:00-26:00", "--wan-window", "01:00-05:00"]);
    let said = refused(&mut up, 2)?;
    for part in
        ["4 places", "--wan-down is \"fast\"", "--wan-up is \"4Mb/s\"", "--wan-budget", "\"25:00-26:00\""]
    {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    Ok(())
}
