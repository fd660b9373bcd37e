use std::time::{Duration, Instant};

use clap::{CommandFactory as _, Parser as _};
use wherry_proto::{Digest, SecretKey};

use super::args::{Args, Command, NetworkCommand};
use super::environment::Environment;
use super::failure::Failure;
use super::output::harmless;
use super::table::{Align, Table};
use super::tally::Tally;
use super::*;
use crate::config::{KEYS, Surroundings, load};
use crate::control::api::{ImageSummary, PullEvent, WanStatus, WanSummary};
use crate::images::inspect::{BlobDetails, ImageDetails, LayerDetails, LayerState, RunDetails, Step};

fn parse(line: &str) -> Result<Command, clap::Error> {
    Args::try_parse_from(args::joined(line.split_whitespace().map(Into::into))).map(|args| args.command)
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment {
        variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        surroundings: Surroundings { root: false, home: Some("/home/ada".into()), xdg_data_home: None },
        ..Environment::default()
    }
}

pub(super) fn digest() -> Digest {
    Digest::sha256(b"layer")
}

#[test]
fn the_command_line_is_well_formed_and_every_key_has_its_flag() {
    Args::command().debug_assert();
    let up = Args::command().find_subcommand("up").unwrap().clone();
    for key in &KEYS {
        assert!(up.get_arguments().any(|arg| arg.get_long() == Some(key.long().as_str())), "{}", key.name);
    }
}

/// A certificate that an authority has made for itself.
const AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----
MIIBfzCCASWgAwIBAgIUT7UaZQK1Kb9ytV/KV1q3uIhFY/owCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJYXV0aG9yaXR5MCAXDTI2MTEyNjAwNDk0MFoYDzIxMjYxMTAy
MDA0OTQwWjAUMRIwEAYDVQQDDAlhdXRob3JpdHkwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASUKJlvpxSHn/XVX7HtqVKLZTeeDAtPLXfQb2fTNS/vNqAQMKMBy7PD
cvumFlqlGFEwxqr3nP02fPWMUiuHxT0/o1MwUTAdBgNVHQ4EFgQUrbvuXs6aGk5O
poAchVHb14AELWEwHwYDVR0jBBgwFoAUrbvuXs6aGk5OpoAchVHb14AELWEwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEAsiymWtLhjWsaoG5/S9RT
QS9rMVdOKUpxvQtm3EYNxnECIAuibf6hf8xmbuxKe9mlpeKI5v/bTBNFpOm8B5N7
0wBs
-----END CERTIFICATE-----
";

#[test]
fn every_flag_of_up_reaches_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("w.toml");
    std::fs::write(&file, "site = \"file\"\ntag_ttl = \"5m\"\n").unwrap();
    let authority = folder.path().join("x.pem");
    std::fs::write(&authority, AUTHORITY).unwrap();
    let line = format!(
        "wherry up --config {} --data /d --gateway 127.0.0.1:0 --status 127.0.0.1:0 --peers 0.0.0.0:0 --bulk \
         0.0.0.0:0 --control /c --bootstrap /ip4/192.0.2.7/tcp/1 --bootstrap /ip4/192.0.2.8/tcp/1 --no-mdns \
         --default-origin r.example --insecure a.example --insecure b.example:5000 --ca {} --site flag \
         --disk-budget 1GiB",
        file.display(),
        authority.display()
    );
    let Command::Up(settings) = parse(&line).unwrap() else { panic!("not up") };
    let environment = environment(&[("WHERRY_LOG", "debug")]);
    let config = load(&settings.sources(&environment).unwrap()).unwrap().config;
    assert_eq!(config.site, "flag");
    assert_eq!(config.tag_ttl, Duration::from_secs(300));
    assert_eq!(config.log, "debug");
    assert_eq!(config.control, std::path::Path::new("/c"));
    assert_eq!(config.bootstrap.len(), 2);
    assert_eq!(config.insecure, ["a.example", "b.example:5000"]);
    assert!(!config.mdns);
    assert_eq!(config.disk_budget, Some(1 << 30));
}

#[test]
fn files_of_authorities_that_are_of_no_use_are_told_with_all_else_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let line = format!("wherry up --data /d --ca /nowhere.pem --ca {} --tag-ttl never", empty.display());
    let Command::Up(settings) = parse(&line).unwrap() else { panic!("not up") };
    let text = load(&settings.sources(&environment(&[])).unwrap()).unwrap_err().to_string();
    for part in [
        "wrong in 3 places",
        "\"/nowhere.pem\", which cannot be read",
        "empty.pem\", of which no",
        "--tag-ttl is",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_configuration_file_that_is_named_has_to_exist() {
    let Command::Up(settings) = parse("wherry up --config /nowhere/w.toml").unwrap() else {
        panic!("not up")
    };
    let failure = settings.sources(&environment(&[])).unwrap_err();
    assert!(matches!(&failure, Failure::Usage(text) if text.contains("/nowhere/w.toml")), "{failure:?}");
    let Command::Up(settings) = parse("wherry up").unwrap() else { panic!("not up") };
    settings.sources(&environment(&[("WHERRY_CONFIG", "/nowhere/w.toml")])).unwrap_err();
}

#[test]
fn client_commands_find_the_socket_of_the_node_that_is_meant() {
    let socket = |line: &str, variables| {
        let Command::Images(args) = parse(line).unwrap() else { panic!("not images") };
        let sockets = args.client(&environment(variables)).sockets().to_vec();
        sockets.iter().map(|socket| socket.display().to_string()).collect::<Vec<_>>().join(" ")
    };
    let both = "/home/ada/.local/share/wherry/control.sock /run/wherry/control.sock";
    assert_eq!(socket("wherry images", &[]), both);
    assert_eq!(socket("wherry images --data /d", &[("WHERRY_CONTROL", "/c")]), "/d/control.sock");
    assert_eq!(socket("wherry images --control /c --data /d", &[]), "/c");
    assert_eq!(socket("wherry images", &[("WHERRY_DATA", "/d")]), "/d/control.sock");
    // What is wrong with the node's own settings is for the node to say.
    assert_eq!(socket("wherry images", &[("WHERRY_CONTROL", "/c"), ("WHERRY_GATEWAY", "x")]), "/c");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for line in [
        "wherry",
        "wherry pull",
        "wherry pull a b",
        "wherry pull --wait soon a",
        "wherry pull --wait 500ms a",
        "wherry pull --wait 8d a",
        "wherry up --gatway 1.2.3.4:5",
        "wherry up extra",
        "wherry network",
        "wherry network admit",
        "wherry network admit nobody",
        "wherry network init --days 0",
        "wherry network init --days 40000",
        "wherry completions cmd",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
    let peer = SecretKey::from_seed([1; 32]).node();
    let Command::Network(args) =
        parse(&format!("wherry network admit {peer} --days 9 --bootstrap /ip4/1.2.3.4/tcp/5 --json"))
            .unwrap()
    else {
        panic!("not network")
    };
    assert!(args.json);
    assert!(matches!(args.command, NetworkCommand::Admit { days: 9, .. }));
    // The line of 'admit' may be pasted with or without quotes.
    let Command::Network(args) =
        parse("wherry network join wherry-certificate-1:xyz /ip4/1.2.3.4/tcp/5").unwrap()
    else {
        panic!("not network")
    };
    assert!(matches!(args.command, NetworkCommand::Join { line, replace: false } if line.len() == 2));
}

#[test]
fn a_negative_value_is_a_value_and_a_flag_in_its_place_is_none() {
    for (line, value) in [("--wan-up -1", "-1"), ("--wan-up=-1", "-1"), ("--disk-budget -5GiB", "-5GiB")] {
        let Command::Up(settings) = parse(&format!("wherry up --data /d {line}")).unwrap() else {
            panic!("not up")
        };
        let text = load(&settings.sources(&environment(&[])).unwrap()).unwrap_err().to_string();
        let flag = line.split([' ', '=']).next().unwrap();
        assert!(text.contains(&format!("{flag} is \"{value}\"")) && text.contains("expected"), "{text}");
    }
    for line in ["wherry up --wan-up --site x", "wherry up --wan-up -h"] {
        let text = parse(line).unwrap_err().to_string();
        assert!(text.contains("a value is required for '--wan-up"), "{text}");
    }
    for line in ["wherry network init --days -1", "wherry network init --days=-1"] {
        let text = parse(line).unwrap_err().to_string();
        assert!(text.contains("'-1'") && text.contains("--days") && text.contains("1..="), "{text}");
    }
}

#[test]
fn an_imported_image_without_a_name_is_called_by_its_digest_and_can_get_a_name() {
    use crate::control::api::{ImportSummary, ImportedImage};
    let image = |reference: Option<&str>| ImportedImage {
        reference: reference.map(str::to_owned),
        tag: None,
        digest: digest(),
        size: 1,
    };
    let said = |images| archive::nameless(&ImportSummary { images }, std::path::Path::new("layout/"));
    let alone = said(vec![image(None)]).unwrap();
    assert!(alone.contains(&format!("'wherry inspect {}'", digest().short())), "{alone}");
    assert!(alone.contains("'wherry import --name REPOSITORY:TAG layout/'"), "{alone}");
    let tagged = said(vec![ImportedImage { tag: Some("1.0".to_owned()), ..image(None) }]).unwrap();
    assert!(tagged.contains("the tag 1.0 and no name"), "{tagged}");
    assert!(tagged.contains("'wherry import --name REPOSITORY:1.0 layout/'"), "{tagged}");
    let several = said(vec![image(Some("a:1")), image(None)]).unwrap();
    assert!(several.contains("where an archive has a single image"), "{several}");
    assert_eq!(said(vec![image(Some("a:1"))]), None);
}

#[test]
fn one_of_a_kind_is_told_of_in_the_singular() {
    use crate::control::api::{CheckSummary, RemoveSummary, RemovedImage};
    let summary = |blobs, missing| CheckSummary {
        blobs,
        bytes: 1,
        seconds: 1.0,
        damaged: Vec::new(),
        missing: vec![digest(); missing],
        unread: Vec::new(),
    };
    let page = check::page(&summary(1, 1));
    assert!(page.ends_with("checked 1 blob with 1 B in 1.00 s: all are right, 1 is not here\n"), "{page}");
    let page = check::page(&summary(2, 2));
    assert!(page.ends_with("checked 2 blobs with 1 B in 1.00 s: all are right, 2 are not here\n"), "{page}");
    let removed = |blobs, partial, shared| {
        let (reference, digest) = ("a:1".to_owned(), digest());
        let image = RemovedImage { reference, digest, blobs, partial, bytes: 1, shared, pinned: false };
        keep::removed(&RemoveSummary { removed: vec![image] })
    };
    assert_eq!(
        removed(1, 1, 1),
        "a:1 removed, 1 blob and what was here of 1 more with 1 B; 1 that other images have too stays\n"
    );
    assert_eq!(removed(2, 0, 2), "a:1 removed, 2 blobs with 1 B; 2 that other images have too stay\n");
    let (reference, digest) = ("a:1".to_owned(), digest());
    let pinned = RemovedImage { reference, digest, blobs: 1, partial: 0, bytes: 1, shared: 0, pinned: true };
    let said = keep::removed(&RemoveSummary { removed: vec![pinned] });
    assert_eq!(said, "a:1 removed, 1 blob with 1 B; it was pinned\n");
}

#[test]
fn tables_line_up_and_strangers_cannot_steer_the_terminal() {
    let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("NOTE", Align::Left)]);
    table.row(["a".to_owned(), "1 B".to_owned(), String::new()]);
    table.row(["longer\u{1b}[2J".to_owned(), "100 B".to_owned(), "é\n".to_owned()]);
    assert_eq!(
        table.to_string(),
        "NAME         SIZE  NOTE\na             1 B\nlonger\u{fffd}[2J  100 B  é\u{fffd}\n"
    );
    assert_eq!(harmless("a\u{202e}b\u{9b}c\r\td"), "a\u{fffd}b\u{fffd}c\u{fffd}\u{fffd}d");
}

#[test]
fn images_are_listed_with_size_and_age() {
    let image = ImageSummary {
        reference: "docker.io/library/debian:13".to_owned(),
        digest: digest(),
        size: 48 << 20,
        here: 48 << 20,
        whole: true,
        layers: 1,
        added: Some(1_000),
        pinned: true,
        was: Vec::new(),
        damaged: None,
    };
    let left = ImageSummary {
        here: 1 << 20,
        whole: false,
        added: None,
        pinned: false,
        was: vec!["debian:12".to_owned()],
        ..image.clone()
    };
    let short = digest().short();
    let expected = format!(
        "IMAGE                        DIGEST            SIZE  LAYERS  HERE FOR  PINNED  NOTE\n\
         docker.io/library/debian:13  {short}  48.0 MiB       1  2 hours   yes\n\
         docker.io/library/debian:13  {short}  48.0 MiB       1                    1.00 MiB of it here; was debian:12\n",
    );
    assert_eq!(list::images_table(&[image, left], 8_300), expected);
}

#[test]
fn inspect_shows_layers_with_what_made_them_and_who_shares_them() {
    let blob = |bytes: &[u8], media_type: &str| BlobDetails {
        digest: Digest::sha256(bytes),
        size: 1 << 20,
        media_type: media_type.to_owned(),
    };
    let mut image = ImageDetails {
        reference: "r.example/app:1".to_owned(),
        digest: digest(),
        media_type: "application/m".to_owned(),
        tag: None,
        config: blob(b"c", "application/c"),
        platform: "linux/arm64/v8".to_owned(),
        created: None,
        size: 1 << 20,
        shared_size: 1 << 20,
        here: 1 << 20,
        layers: vec![LayerDetails {
            state: LayerState::Here,
            here: 1 << 20,
            blob: blob(b"1", "application/vnd.oci.image.layer.v1.tar+gzip"),
            instruction: Some("RUN make\u{1b}[2J".to_owned()),
            shared_with: vec!["r.example/app:2".to_owned()],
        }],
        history: vec![Step { instruction: "CMD [\"sh\"]".to_owned(), layer: None, created: None }],
        history_fits: true,
        run: RunDetails { cmd: vec!["sh".to_owned(), "-c x".to_owned()], ..RunDetails::default() },
    };
    let page = inspect::page(&image);
    for part in [
        "size        1.00 MiB in 1 layer, of which 1.00 MiB are shared with other images here\n",
        "command     [\"sh\",\"-c x\"]\n",
        "    1.00 MiB  tar+gzip  here\n      RUN make\u{fffd}[2J\n      shared with r.example/app:2\n",
        "\nsteps that made no layer\n      CMD [\"sh\"]\n",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    assert!(
        !page.contains("entrypoint") && !page.contains("created") && !page.contains("the rest"),
        "{page}"
    );

    (image.here, image.layers[0].here, image.layers[0].state) = (1 << 19, 1 << 19, LayerState::Partly);
    let page = inspect::page(&image);
    assert!(page.contains("here        512 KiB of it; pull the image to bring the rest\n"), "{page}");
    assert!(page.contains("  tar+gzip  partly here, 512 KiB\n"), "{page}");
    image.layers[0].state = LayerState::Missing;
    assert!(inspect::page(&image).contains("  tar+gzip  missing\n"));
}

#[test]
fn rows_fit_into_every_terminal() {
    let begun = Instant::now();
    let mut tally = Tally::default();
    let digests: Vec<_> = (0..40u8).map(|number| Digest::sha256(&[number])).collect();
    for digest in &digests {
        let started = PullEvent::LayerStarted { digest: *digest, size: 1023 << 10, present: false, here: 0 };
        tally.event(&started, begun);
    }
    let moving = digests[39];
    let progress =
        PullEvent::Progress { digest: moving, bytes: 1022 << 10, from_peers: 1 << 10, from_origin: 0 };
    let now = begun + Duration::from_secs(1);
    tally.event(&progress, now);
    for (width, height) in [(300, 60), (100, 30), (80, 24), (60, 24), (40, 10), (10, 3), (1, 1)] {
        let rows = tally.rows(width, height, now);
        assert!(rows.len() < height.max(3), "{} rows of {height}", rows.len());
        assert!(rows.iter().all(|row| row.chars().count() < width), "{rows:#?}");
    }
    let rows = tally.rows(100, 12, now);
    assert!(rows[0].starts_with(&moving.short()), "{rows:#?}");
    assert!(rows[10].contains(", 30 more blobs to come"), "{rows:#?}");
}

#[test]
fn a_node_says_where_it_is_a_service_a_line() {
    let addresses = crate::status::Addresses {
        gateway: ([127, 0, 0, 1], 5050).into(),
        status: ([127, 0, 0, 1], 5051).into(),
        peers: ([0, 0, 0, 0], 4050).into(),
        bulk: ([0, 0, 0, 0], 4051).into(),
        control: "/d/control.sock".into(),
        bootstrap: Vec::new(),
    };
    assert_eq!(
        up::readiness(&addresses),
        "gateway 127.0.0.1:5050\nstatus 127.0.0.1:5051\npeers 0.0.0.0:4050\nbulk 0.0.0.0:4051\n\
         control /d/control.sock\nready\n"
    );
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let closed = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    assert!(matches!(Failure::from(closed()), Failure::ClosedPipe));
    assert!(matches!(Failure::from(crate::control::ClientError::Local(closed())), Failure::ClosedPipe));
    assert!(matches!(Failure::from(serde_json::Error::io(closed())), Failure::ClosedPipe));
}

#[test]
fn the_links_out_of_a_site_are_told_of_in_lines_and_a_pause_says_who_knows() {
    let paused = WanStatus { why: Some("somebody had it pause".to_owned()), ..WanStatus::default() };
    let limits = WanStatus {
        down: Some(500_000),
        budget: Some(2 << 30),
        windows: vec!["01:00-05:00".to_owned(), "Sat 00:00-24:00".to_owned()],
        spent: 3 << 20,
        spent_here: 1 << 20,
        taking: 2,
        ..WanStatus::default()
    };
    let page = wan::page(&limits);
    for line in [
        "now       bytes may come from outside",
        "down      4Mbit/s, shared by 2 nodes now",
        "up        no limit",
        "today     3.00 MiB of 2.00 GiB, 1.00 MiB by way of this node",
        "hours     01:00-05:00 and Sat 00:00-24:00",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    assert!(wan::page(&paused).starts_with("now       somebody had it pause\n"));
    let told = |neighbours, agree, status: &WanStatus, paused| {
        let summary = WanSummary { site: "harbour".to_owned(), neighbours, agree, status: status.clone() };
        wan::told(&summary, paused)
    };
    assert!(told(3, 3, &paused, true).contains("all 3 other nodes"));
    assert!(told(3, 2, &paused, true).contains("2 of 3 other nodes"));
    assert!(told(0, 0, &limits, false).starts_with("site harbour goes on\n"));
    assert!(told(1, 1, &paused, false).contains("but somebody had it pause"));
}

#[test]
fn a_preload_shows_a_bar_for_each_node_and_a_line_for_what_is_worth_one() {
    use super::preload::Nodes;
    use crate::control::api::{PreloadProgress, PreloadStep};
    let node = |seed| SecretKey::from_seed([seed; 32]).node().to_string();
    let end = |seed| node(seed).chars().skip(44).collect::<String>();
    let progress = |seed, bytes, step, why: Option<&str>| PreloadProgress {
        node: node(seed),
        reference: "app:1".to_owned(),
        bytes,
        of_bytes: 8 << 20,
        step,
        why: why.map(str::to_owned),
    };
    let (mut nodes, start) = (Nodes::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    for seed in [1, 2] {
        assert_eq!(nodes.event(&progress(seed, 0, PreloadStep::Running, None), at(0)), None);
        assert_eq!(nodes.event(&progress(seed, 4 << 20, PreloadStep::Running, None), at(4)), None);
    }
    let rows = nodes.rows(80, 24, at(4));
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(
        rows.iter().any(|row| row.starts_with(&end(1)) && row.contains("4.00 MiB of 8.00 MiB")),
        "{rows:?}"
    );
    assert!(rows[2].starts_with("0 of 2 nodes are done, 8.00 MiB of 16.0 MiB there"), "{rows:?}");
    assert!(rows.iter().all(|row| row.chars().count() < 80));
    assert_eq!(nodes.rows(80, 3, at(4)).len(), 2);

    let waiting = progress(1, 4 << 20, PreloadStep::Waiting, Some("a pause\u{1b}[2J"));
    let line = nodes.event(&waiting, at(5)).unwrap();
    assert_eq!(line, format!("{} app:1: waits: a pause\u{fffd}[2J", end(1)));
    assert_eq!(nodes.event(&waiting, at(6)), None, "said once");
    let line = nodes.event(&progress(1, 8 << 20, PreloadStep::Done, None), at(7)).unwrap();
    assert_eq!(line, format!("{} app:1: there and pinned, 8.00 MiB", end(1)));
    assert!(!nodes.is_done());
    nodes.event(&progress(2, 4 << 20, PreloadStep::Failed, Some("no space")), at(8)).unwrap();
    assert!(nodes.is_done() && nodes.rows(80, 24, at(8)).is_empty());
}

#[test]
fn nodes_to_preload_are_all_of_the_site_or_those_that_are_named() {
    let Command::Preload(args) = parse("wherry preload a b --nodes one,two --platform linux/arm64").unwrap()
    else {
        panic!("no preload")
    };
    assert_eq!(args.references, ["a", "b"]);
    assert_eq!(args.nodes, Some(vec!["one".to_owned(), "two".to_owned()]));
    assert!(matches!(parse("wherry preload --site a"), Ok(Command::Preload(args)) if args.nodes.is_none()));
    assert!(parse("wherry preload").is_err());
    assert!(parse("wherry preload --site --nodes one a").is_err());
}

#[test]
fn why_says_what_would_be_done_for_an_image_that_nobody_pulls() {
    use super::why::page;
    use crate::control::api::{Away, BlobWhy, WhyImage, WhyState};
    let mut why = WhyImage {
        reference: "r.example/app:1".to_owned(),
        state: WhyState::Absent,
        pulled: false,
        registry: "r.example".to_owned(),
        bytes: 0,
        of_bytes: None,
        rate: 0,
        seconds_left: None,
        limit: None,
        holders: Vec::new(),
        blobs: Vec::new(),
    };
    assert_eq!(
        page(&why),
        "r.example/app:1 is not here, and nobody pulls it\na pull would ask r.example: no node that is connected has all \
         of it\n"
    );
    let holder = SecretKey::from_seed([1; 32]).node();
    (why.holders, why.of_bytes) = (vec![holder], Some(2048));
    let end = holder.to_string().chars().skip(44).collect::<String>();
    assert_eq!(
        page(&why),
        format!(
            "r.example/app:1 is not here whole, 0 B of 2.00 KiB, and nobody pulls it\na pull would take it from peer …{end}\n"
        )
    );
    // A runtime fetches a part of it.
    let blob = |bytes| BlobWhy {
        digest: digest(),
        size: 1024,
        bytes,
        transfer: None,
        away: None,
        holders: Vec::new(),
    };
    (why.state, why.blobs) = (WhyState::Coming, vec![blob(0)]);
    assert!(page(&why).contains("nobody fetches it"), "{}", page(&why));
    why.pulled = true;
    assert!(page(&why).contains("waits for its turn"), "{}", page(&why));
    why.blobs[0].away =
        Some(Away { origin: "r.example/app".to_owned(), why: "refused".to_owned(), seconds_left: 90 });
    let said = page(&why);
    assert!(
        said.contains("waits until r.example/app is in reach again, 90.0 s more at most: refused"),
        "{said}"
    );
    why.state = WhyState::Resolving;
    assert!(page(&why).contains("it is not known yet what the name means"));
}
