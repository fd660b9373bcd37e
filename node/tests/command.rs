//! The `wherry` command as a user meets it: real processes, real sockets, real files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use wherry_node::store::{Store, StoreSettings};
use wherry_proto::Digest;

/// What the contract allows a node to end in.
const END: Duration = Duration::from_secs(10);

/// `wherry` with these arguments, a home of its own and nothing else from this environment.
fn wherry(home: &TempDir, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wherry"));
    command.args(line.split_whitespace()).env_clear().env("HOME", home.path()).env("TMPDIR", home.path());
    // Root's defaults are those of the system; tests have none.
    command.env("WHERRY_DATA", home.path().join("data")).env("WHERRY_CONFIG", empty(home));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn empty(home: &TempDir) -> std::path::PathBuf {
    let path = home.path().join("empty.toml");
    fs::write(&path, "").unwrap();
    path
}

fn run(home: &TempDir, line: &str) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = wherry(home, line).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn json(home: &TempDir, line: &str) -> Value {
    let (code, out, err) = run(home, line);
    assert_eq!(code, Some(0), "{line}: {err}");
    serde_json::from_str(&out).unwrap()
}

const UP: &str =
    "up --gateway 127.0.0.1:0 --status 127.0.0.1:0 --peers 127.0.0.1:0 --bulk 127.0.0.1:0 --no-mdns";

/// A node that is killed at the end of its test.
struct Node {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    said: Vec<String>,
}

impl Node {
    fn start(home: &TempDir, flags: &str) -> Self {
        Self::spawn(&mut wherry(home, &format!("{UP} {flags}")))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut node = Self { child: command.spawn().unwrap(), stdout: None, said: Vec::new() };
        let mut stdout = BufReader::new(node.child.stdout.take().unwrap());
        loop {
            let mut line = String::new();
            if stdout.read_line(&mut line).unwrap() == 0 {
                let mut log = String::new();
                node.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
                panic!("the node ended before it was ready: {log}");
            }
            if line == "ready\n" {
                node.stdout = Some(stdout);
                return node;
            }
            node.said.push(line.trim_end().to_owned());
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it has ended; its standard output closes then, if somebody still reads it.
    fn end(&mut self) -> Option<i32> {
        if let Some(mut stdout) = self.stdout.take() {
            let (closed, wait) = mpsc::sync_channel(1);
            std::thread::spawn(move || closed.send(stdout.read_to_end(&mut Vec::new())));
            wait.recv_timeout(END).expect("the node is still there").unwrap();
        }
        self.child.wait().unwrap().code()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_node_needs_no_configuration_says_where_it_is_and_ends_when_asked() {
    let home = tempdir().unwrap();
    let mut node = Node::start(&home, "");
    let status = json(&home, "status --json");
    for service in ["gateway", "status", "peers", "bulk", "control"] {
        let line = format!("{service} {}", status["addresses"][service].as_str().unwrap());
        assert!(node.said.contains(&line), "{line} is not in {:?}", node.said);
    }
    assert_eq!(status["peers"], 0);
    assert_eq!(json(&home, "network show --json")["peer_id"], status["peer_id"]);
    assert_eq!(json(&home, "images --json"), Value::Array(Vec::new()));
    assert_eq!(
        json(&home, "peers --json"),
        json!({ "peers": [], "refused": [], "unreached": [], "joined": null })
    );
    node.signal(Signal::TERM);
    assert_eq!(node.end(), Some(0));
    assert!(!home.path().join("data/control.sock").exists());
}

#[test]
fn a_node_that_listens_on_all_addresses_says_so_and_which_of_them_others_can_dial() {
    let home = tempdir().unwrap();
    let node = Node::spawn(&mut wherry(&home, &UP.replace("--peers 127.0.0.1:0", "--peers 0.0.0.0:0")));
    let status = json(&home, "status --json");
    let peers = status["addresses"]["peers"].as_str().unwrap();
    let port = peers.strip_prefix("0.0.0.0:").unwrap_or_else(|| panic!("{peers}"));
    assert_ne!(port, "0");
    assert!(node.said.contains(&format!("peers {peers}")), "{:?}", node.said);
    let (_, page, _) = run(&home, "status");
    let dialable: Vec<&str> =
        page.lines().filter(|line| line.starts_with("bootstrap ") && line.contains("/ip4/")).collect();
    assert!(dialable.iter().any(|line| line.contains(&format!("/tcp/{port}/p2p/"))), "{page}");
}

#[test]
fn the_readme_names_the_oldest_rust_that_builds_this() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let version = cargo.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    assert!(readme.contains(&format!("Rust {} or newer", version.trim_matches('"'))));
}

#[test]
fn a_second_node_on_the_same_folder_is_refused_and_harms_the_first_in_nothing() {
    let home = tempdir().unwrap();
    let _first = Node::start(&home, "");
    let (code, _, err) = run(&home, UP);
    assert_eq!(code, Some(1));
    assert!(err.contains("running"), "{err}");
    let (code, _, err) = run(&home, &format!("{UP} --control {}", home.path().join("other.sock").display()));
    assert_eq!(code, Some(1), "{err}");
    json(&home, "status --json");
}

#[test]
fn a_node_that_was_killed_is_simply_started_again() {
    let home = tempdir().unwrap();
    let mut node = Node::start(&home, "");
    let before = json(&home, "status --json");
    node.signal(Signal::KILL);
    node.end();
    assert!(home.path().join("data/control.sock").exists());
    let _again = Node::start(&home, "");
    assert_eq!(json(&home, "status --json")["peer_id"], before["peer_id"]);
}

#[test]
fn a_node_goes_on_when_nobody_reads_what_it_says() {
    let home = tempdir().unwrap();
    let mut node = Node::start(&home, "--log debug");
    drop(node.stdout.take());
    drop(node.child.stderr.take());
    for _ in 0..20 {
        json(&home, "status --json");
    }
    node.signal(Signal::INT);
    assert_eq!(node.end(), Some(0));
}

#[test]
fn without_a_node_a_command_says_how_to_start_one() {
    let home = tempdir().unwrap();
    for line in [
        "pull alpine",
        "images",
        "inspect alpine",
        "inspect --layer 1 alpine",
        "diff alpine debian",
        "cat alpine:/etc/passwd",
        "unpack alpine x",
        "export alpine -o x.tar",
        "peers",
        "status",
    ] {
        let (code, out, err) = run(&home, line);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{line}");
        assert!(err.contains("start one with 'wherry up'"), "{line}: {err}");
    }
}

#[test]
fn wrong_usage_and_wrong_configuration_end_with_2_and_name_everything() {
    let home = tempdir().unwrap();
    for line in [
        "",
        "pull",
        "pull --platform arm alpine",
        "sail",
        "cat alpine",
        "diff alpine",
        "inspect --layer 0 a",
        "up --nonsense",
        "network admit nobody",
    ] {
        assert_eq!(run(&home, line).0, Some(2), "{line}");
    }
    for line in ["pull https://a.example/b", "inspect A", "export a:b:c -o x.tar"] {
        let (code, _, err) = run(&home, line);
        assert!(code == Some(2) && err.contains("expected"), "{line}: {err}");
    }
    let mut command = wherry(&home, "up --gateway here --disk-budget lots --ca /nowhere.pem");
    let output = command.env("WHERRY_SITES", "x").output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    for part in [
        "--gateway is \"here\"",
        "--disk-budget is \"lots\"",
        "--ca is \"/nowhere.pem\"",
        "did you mean WHERRY_SITE?",
    ] {
        assert!(err.contains(part), "{err}");
    }
}

#[test]
fn a_start_on_an_address_that_is_taken_leaves_nothing_behind() {
    let home = tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    for service in ["gateway", "status", "peers", "bulk"] {
        let (flag, address) = (format!("--{service}"), taken.local_addr().unwrap());
        let (code, _, err) =
            run(&home, &UP.replace(&format!("{flag} 127.0.0.1:0"), &format!("{flag} {address}")));
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(&address.to_string()) && err.contains(&flag), "{err}");
        assert!(!home.path().join("data").exists(), "{service}");
    }
}

#[test]
fn under_json_the_last_line_of_standard_error_is_an_object_that_says_what_is_wrong() {
    let home = tempdir().unwrap();
    for (line, status, part) in [
        ("images --json", 1, "no node is running"),
        ("pull alpine --json", 1, "no node is running"),
        ("network admit --json nobody", 2, "nobody"),
        ("export --json alpine", 2, "use -o FILE"),
    ] {
        let (code, out, err) = run(&home, line);
        assert_eq!((code, out.as_str()), (Some(status), ""), "{line}: {err}");
        let told: Value = serde_json::from_str(err.lines().last().unwrap()).unwrap();
        assert!(told["error"].as_str().unwrap().contains(part), "{told}");
        assert!(told["hint"].is_string() || told["hint"].is_null(), "{told}");
    }
}

#[test]
fn a_place_where_nothing_can_be_written_is_named_as_it_was_typed() {
    let home = tempdir().unwrap();
    let _node = Node::start(&home, "");
    let (code, _, err) = run(&home, "export alpine -o /nowhere/x.tar");
    assert_eq!(code, Some(1));
    assert_eq!(err, "error: /nowhere/x.tar cannot be written: No such file or directory (os error 2)\n");
}

#[test]
fn a_member_that_is_to_admit_others_names_its_network() {
    let (operator, home) = (tempdir().unwrap(), tempdir().unwrap());
    run(&operator, "network init");
    let peer = json(&home, "network show --json")["peer_id"].as_str().unwrap().to_owned();
    let line = json(&operator, &format!("network admit {peer} --json"))["line"].as_str().unwrap().to_owned();
    let network = json(&home, &format!("network join {line} --json"))["network"].as_str().unwrap().to_owned();
    let (code, _, err) = run(&home, &format!("network admit {peer}"));
    assert_eq!(code, Some(1));
    assert!(err.contains(&network) && err.contains("operator's machine"), "{err}");
}

#[test]
fn a_node_that_joins_while_it_runs_says_that_this_counts_after_a_restart() {
    let (operator, home) = (tempdir().unwrap(), tempdir().unwrap());
    run(&operator, "network init");
    let mut node = Node::start(&home, "");
    let before = json(&home, "status --json");
    assert_eq!(before["joined"], Value::Null);
    let line = json(&operator, &format!("network admit {} --json", before["peer_id"].as_str().unwrap()));
    let joined = json(&home, &format!("network join {} --json", line["line"].as_str().unwrap()));
    assert_eq!((&joined["restart"], &joined["network"]), (&Value::Bool(true), &line["network"]));
    let status = json(&home, "status --json");
    assert_eq!((&status["network"], &status["joined"]["network"]), (&before["network"], &line["network"]));
    for command in ["status", "peers"] {
        let (_, page, _) = run(&home, command);
        assert!(
            page.contains("restart this node") && page.contains(line["network"].as_str().unwrap()),
            "{page}"
        );
    }
    node.signal(Signal::TERM);
    node.end();
    let _again = Node::start(&home, "");
    let status = json(&home, "status --json");
    assert_eq!((&status["network"], &status["joined"]), (&line["network"], &Value::Null));
}

#[test]
fn a_command_whose_node_dies_says_so_and_nothing_of_connections() {
    let home = tempdir().unwrap();
    // An origin that says nothing, so that the pull is under way.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = mute.local_addr().unwrap();
    let mut node = Node::start(&home, &format!("--insecure {origin}"));
    let pull = wherry(&home, &format!("pull {origin}/a/b:1")).spawn().unwrap();
    let _asked = mute.accept().unwrap();
    node.signal(Signal::KILL);
    node.end();
    let output = pull.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains("the node went away before it was done") && err.contains("repeat this command"),
        "{err}"
    );
}

#[test]
fn a_variable_that_is_no_setting_is_told_of_and_stops_no_command() {
    let home = tempdir().unwrap();
    let said = "WHERRY_SITES is no setting; did you mean WHERRY_SITE?";
    let mut node = Node::spawn(wherry(&home, UP).env("WHERRY_SITES", "x"));
    for line in ["status --json", "config --json"] {
        let output = wherry(&home, line).env("WHERRY_SITES", "x").output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("warning: {said}\n"), "{line}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap();
    }
    node.signal(Signal::TERM);
    assert_eq!(node.end(), Some(0));
    let mut log = String::new();
    node.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains(said)), "{log}");
}

#[test]
fn a_malformed_identity_stops_the_start_and_is_left_alone() {
    let home = tempdir().unwrap();
    let identity = home.path().join("data/identity");
    fs::create_dir_all(identity.parent().unwrap()).unwrap();
    fs::write(&identity, "not a key\n").unwrap();
    fs::set_permissions(&identity, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (code, _, err) = run(&home, UP);
    assert_eq!(code, Some(1));
    assert!(err.contains("holds no key"), "{err}");
    assert_eq!(fs::read_to_string(&identity).unwrap(), "not a key\n");
}

#[test]
fn output_into_a_closed_pipe_is_no_failure_and_no_panic() {
    let home = tempdir().unwrap();
    for line in ["config", "up --help", "--version", "completions bash", "network show"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = wherry(&home, line).stdout(writer).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{line}");
    }
}

#[test]
fn a_node_joins_by_the_line_of_the_operator() {
    let (operator, member) = (tempdir().unwrap(), tempdir().unwrap());
    let network = json(&operator, "network init --json")["network"].clone();
    let peer = json(&member, "network show --json")["peer_id"].as_str().unwrap().to_owned();
    let (code, line, _) =
        run(&operator, &format!("network admit {peer} --bootstrap /ip4/192.0.2.7/tcp/4050"));
    assert_eq!(code, Some(0));
    assert_eq!(line.lines().count(), 1);
    let joined = json(&member, &format!("network join {line} --json"));
    assert_eq!((&joined["network"], joined["peer_id"].as_str()), (&network, Some(peer.as_str())));
    let shown = json(&member, "network show --json");
    assert_eq!(shown["bootstrap"][0], "/ip4/192.0.2.7/tcp/4050");
    assert_eq!(shown["expired"], false);
    let (code, _, err) = run(&operator, &format!("network join {line}"));
    assert_eq!(code, Some(1));
    assert!(err.contains("does not admit this node"), "{err}");
}

#[test]
fn an_image_goes_in_and_out_and_a_failed_export_leaves_nothing() {
    let home = tempdir().unwrap();
    let _node = Node::start(&home, "");
    let layout = home.path().join("layout");
    let digest = write_layout(&layout);
    let imported = json(&home, &format!("import {} --json", layout.display()));
    assert_eq!(imported["images"][0]["digest"], digest.as_str());
    assert_eq!(json(&home, "images --json")[0]["reference"], "registry.example/app:1");

    let out = home.path().join("out");
    fs::create_dir(&out).unwrap();
    let archive = out.join("app.tar");
    let (code, stdout, err) = run(&home, &format!("export registry.example/app:1 -o {}", archive.display()));
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "{err}");
    let to_pipe = wherry(&home, "export registry.example/app:1").output().unwrap();
    assert!(to_pipe.status.success());
    assert_eq!(to_pipe.stdout, fs::read(&archive).unwrap());
    let exported = json(&home, &format!("export registry.example/app:1 -o {} --json", archive.display()));
    assert_eq!(exported["bytes"], fs::metadata(&archive).unwrap().len());
    assert_eq!(exported["output"], archive.display().to_string());
    let (code, stdout, err) = run(&home, "export registry.example/app:1 --json");
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{err}");
    let again = json(&home, &format!("import {} --json", archive.display()));
    assert_eq!(again["images"][0]["digest"], digest.as_str());

    // What is no file stays what it is.
    let link = home.path().join("link");
    std::os::unix::fs::symlink(&archive, &link).unwrap();
    fs::write(&archive, "old").unwrap();
    let (code, _, err) = run(&home, &format!("export registry.example/app:1 -o {}", link.display()));
    assert_eq!(code, Some(0), "{err}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&archive).unwrap(), to_pipe.stdout);
    let pipe = home.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    let (code, _, err) = run(&home, &format!("export registry.example/app:1 -o {}", pipe.display()));
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(reader.join().unwrap(), to_pipe.stdout);
    // A part of an archive is none, however little of it whoever reads wants.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let cut_off = wherry(&home, "export registry.example/app:1").stdout(writer).status().unwrap();
    assert_eq!(cut_off.code(), Some(1));

    fs::remove_file(&archive).unwrap();
    let (code, _, err) = run(&home, &format!("export registry.example/none:1 -o {}", archive.display()));
    assert_eq!(code, Some(1));
    assert!(err.contains("registry.example/none:1"), "{err}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    let (code, _, err) = run(&home, &format!("import {}", home.path().join("nowhere").display()));
    assert_eq!(code, Some(1));
    assert!(err.contains("nowhere cannot be read"), "{err}");
}

#[test]
fn a_gateway_lists_the_tags_that_another_node_of_its_site_knows() {
    let (one, other) = (tempdir().unwrap(), tempdir().unwrap());
    json(&one, "network init --json");
    let peer = json(&other, "network show --json")["peer_id"].as_str().unwrap().to_owned();
    let _first = Node::start(&one, "");
    let bootstrap = json(&one, "status --json")["addresses"]["bootstrap"][0].as_str().unwrap().to_owned();
    let (_, line, _) = run(&one, &format!("network admit {peer} --bootstrap {bootstrap}"));
    json(&other, &format!("network join {line} --json"));
    let mut second = Node::start(&other, "");
    let layout = one.path().join("layout");
    write_layout(&layout);
    json(&one, &format!("import {} --json", layout.display()));

    let gateway = json(&other, "status --json")["addresses"]["gateway"].as_str().unwrap().to_owned();
    let list = || get(&gateway, "/v2/app/tags/list?ns=registry.example");
    let connected = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        json(&other, "peers --json")["peers"].as_array().unwrap().len() == 1
    });
    assert!(connected);
    let (head, body) = list();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body, r#"{"name":"app","tags":["1"]}"#);
    second.signal(Signal::TERM);
    assert_eq!(second.end(), Some(0));
}

/// The head and the body of an answer over plain HTTP.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn an_import_that_moves_a_name_keeps_the_new_image_and_lets_the_old_one_go() {
    let home = tempdir().unwrap();
    let mut node = Node::start(&home, "");
    let layers: Vec<Digest> = ["old", "new"]
        .iter()
        .map(|content| {
            let layout = home.path().join(content);
            write_layout_of(&layout, content.as_bytes());
            json(&home, &format!("import {} --json", layout.display()));
            let image = json(&home, "inspect registry.example/app:1 --json");
            image["layers"][0]["digest"].as_str().unwrap().parse().unwrap()
        })
        .collect();
    node.signal(Signal::TERM);
    node.end();
    let store = Store::open(&home.path().join("data"), StoreSettings::default()).unwrap();
    assert!(!store.is_pinned(&layers[0]) && store.is_pinned(&layers[1]));
    // Manifest, configuration and layer.
    assert_eq!(store.pinned_by("registry.example/app:1").unwrap().len(), 3);
}

#[test]
fn a_name_without_a_registry_means_the_default_origin_to_commands_and_gateway_alike() {
    let home = tempdir().unwrap();
    let node = Node::start(&home, "--default-origin registry.example");
    let layout = home.path().join("layout");
    let digest = write_layout(&layout);
    json(&home, &format!("import {} --json", layout.display()));
    for name in ["app:1", "registry.example/app:1"] {
        let image = json(&home, &format!("inspect {name} --json"));
        assert_eq!(
            (&image["digest"], &image["reference"]),
            (&digest.as_str().into(), &"registry.example/app:1".into())
        );
        assert_eq!(
            run(&home, &format!("export {name} -o {}", home.path().join("app.tar").display())).0,
            Some(0)
        );
    }
    let gateway = json(&home, "status --json")["addresses"]["gateway"].as_str().unwrap().to_owned();
    let (head, body) = get(&gateway, "/v2/app/manifests/1");
    assert!(
        head.starts_with("HTTP/1.1 200") && Digest::sha256(body.as_bytes()).to_string() == digest,
        "{head}"
    );
    let (code, _, err) = run(&home, "inspect docker.io/library/app:1");
    assert_eq!(code, Some(1), "{err}");
    drop(node);

    // Nobody listens there.
    let _node = Node::start(&home, "--default-origin 127.0.0.1:1 --insecure 127.0.0.1:1");
    let (code, _, err) = run(&home, "pull app");
    assert_eq!(code, Some(1));
    assert!(err.contains("127.0.0.1:1/app:latest"), "{err}");
}

/// An OCI layout with one image, `registry.example/app:1`; the digest of its manifest.
fn write_layout(path: &Path) -> String {
    write_layout_of(path, b"world")
}

fn write_layout_of(path: &Path, content: &[u8]) -> String {
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let digest = Digest::sha256(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        serde_json::json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "hello", content).unwrap();
    let layer = put(&tar.into_inner().unwrap(), "application/vnd.oci.image.layer.v1.tar");
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
        "history": [{ "created_by": "COPY hello /" }],
    });
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer],
    });
    let mut entry = put(manifest.to_string().as_bytes(), media_type);
    entry["annotations"] = serde_json::json!({ "io.containerd.image.name": "registry.example/app:1" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(path.join("index.json"), index.to_string()).unwrap();
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    entry["digest"].as_str().unwrap().to_owned()
}

/// Processes whose command line names this folder.
fn processes_of(home: &TempDir) -> usize {
    let names = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(home.path().to_str()?).then_some(())
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| names(entry.ok()?)).count()
}

fn left_over(home: &TempDir) -> Vec<String> {
    let names = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| name.contains("demo")).collect()
}

#[test]
fn the_demo_keeps_every_promise_and_leaves_nothing() {
    let home = tempdir().unwrap();
    let report = json(&home, "demo --json");
    assert_eq!(report["broken"], Value::Array(Vec::new()));
    let nodes = report["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 4);
    assert_eq!(nodes[3]["from_cloud"], 0);
    assert!(report["seconds"].as_f64().unwrap() < 60.0);
    assert_eq!((processes_of(&home), left_over(&home)), (0, Vec::new()));
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_either() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let home = tempdir().unwrap();
        let mut demo = wherry(&home, "demo").spawn().unwrap();
        let mut said = BufReader::new(demo.stderr.take().unwrap()).lines();
        said.find(|line| line.as_ref().unwrap().contains("node 1 makes a network")).unwrap().unwrap();
        assert!(processes_of(&home) > 0);
        kill_process(Pid::from_child(&demo), signal).unwrap();
        let rest: Vec<String> = said.map_while(Result::ok).collect();
        assert_eq!(demo.wait().unwrap().code(), Some(status), "{rest:?}");
        assert!(rest.iter().any(|line| line.contains("interrupted")), "{rest:?}");
        assert_eq!((processes_of(&home), left_over(&home)), (0, Vec::new()));
    }
}
