use std::path::Path;
use std::time::Duration;

use super::*;

fn sources(file: &str, variables: &[(&str, &str)], flags: &[(&'static str, &[&str])]) -> Sources {
    let own = |text: &&str| (*text).to_owned();
    Sources {
        file: Some(ConfigFile { path: "wherry.toml".to_owned(), text: file.to_owned() }),
        variables: variables.iter().map(|(name, value)| (own(name), own(value))).collect(),
        flags: flags.iter().map(|(name, values)| (*name, values.iter().map(own).collect())).collect(),
        surroundings: Surroundings { root: false, home: Some("/home/ada".into()), xdg_data_home: None },
    }
}

fn good(sources: &Sources) -> Loaded {
    load(sources).unwrap()
}

fn problems(sources: &Sources) -> Vec<String> {
    load(sources).unwrap_err().problems.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_needs_to_be_set() {
    let config = good(&sources("", &[], &[])).config;
    assert_eq!(config, Config::new("/home/ada/.local/share/wherry"));
    assert_eq!(config.gateway.to_string(), "127.0.0.1:5050");
    assert_eq!(config.status.to_string(), "127.0.0.1:5051");
    assert_eq!(config.peers.to_string(), "0.0.0.0:4050");
    assert_eq!(config.bulk.to_string(), "0.0.0.0:4051");
    assert_eq!(config.control, Path::new("/home/ada/.local/share/wherry/control.sock"));
}

#[test]
fn flags_win_over_variables_and_these_over_the_file_key_by_key() {
    let file = "gateway = \"127.0.0.5:1\"\nstatus = \"1.1.1.1:2\"\npeers = \"1.1.1.1:3\"\nsite = \"file\"\n";
    let variables = [("WHERRY_STATUS", "2.2.2.2:2"), ("WHERRY_PEERS", "2.2.2.2:3"), ("PATH", "/bin")];
    let loaded = good(&sources(file, &variables, &[("peers", &["3.3.3.3:3"])]));
    let config = &loaded.config;
    assert_eq!(config.gateway.to_string(), "127.0.0.5:1");
    assert_eq!(config.status.to_string(), "2.2.2.2:2");
    assert_eq!(config.peers.to_string(), "3.3.3.3:3");
    assert_eq!(loaded.source("gateway").to_string(), "wherry.toml:1");
    assert_eq!(loaded.source("site").to_string(), "wherry.toml:4");
    assert_eq!(loaded.source("status").to_string(), "WHERRY_STATUS");
    assert_eq!(loaded.source("peers").to_string(), "--peers");
    assert_eq!(loaded.source("bulk"), &Source::Default);
}

#[test]
fn lists_are_arrays_commas_or_repeated_flags() {
    let from_file = good(&sources("insecure = [\"a.example\", \"b.example:5000\"]", &[], &[]));
    let from_variable = good(&sources("", &[("WHERRY_INSECURE", "a.example, b.example:5000")], &[]));
    let from_flags = good(&sources("", &[], &[("insecure", &["a.example", "b.example:5000"])]));
    assert_eq!(from_file.config.insecure, ["a.example", "b.example:5000"]);
    assert_eq!(from_file.config, from_variable.config);
    assert_eq!(from_file.config, from_flags.config);
}

#[test]
fn every_bad_value_of_every_source_is_reported_at_once_and_where_it_stands() {
    let file =
        "# settings\ngateway = 5050\nmdns = \"perhaps\"\ndisk_bugdet = \"20GiB\"\n\n[log]\nlevel = 1\n";
    let variables = [("WHERRY_TAG_TTL", "5"), ("WHERRY_INSECURE", "ok.example,http://x")];
    let flags: [(&'static str, &[&str]); 2] = [("disk_budget", &["lots"]), ("gateway", &["127.0.0.1:5050"])];
    let found = problems(&sources(file, &variables, &flags));
    let expected = [
        ("wherry.toml:2: gateway is \"5050\"; expected IP:PORT", ""),
        ("wherry.toml:3: mdns is \"perhaps\"; expected true or false", ""),
        ("wherry.toml:4: disk_bugdet is no setting; did you mean disk_budget?", ""),
        ("wherry.toml:6: log is a table; expected a level", ""),
        ("WHERRY_TAG_TTL is \"5\"; expected a time with its unit", ""),
        ("WHERRY_INSECURE is \"http://x\"; expected", "without scheme"),
        ("--disk-budget is \"lots\"; expected a size", "20GiB"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, (start, part)) in found.iter().zip(expected) {
        assert!(found.starts_with(start) && found.contains(part), "{found}");
    }
    let all = load(&sources(file, &variables, &flags)).unwrap_err().to_string();
    assert!(all.starts_with("the configuration is wrong in 7 places:\n  wherry.toml:2"), "{all}");
}

#[test]
fn broken_toml_is_reported_with_its_line_beside_other_problems() {
    let found = problems(&sources("site = \"a\"\ngateway = \n", &[("WHERRY_MDNS", "?")], &[]));
    assert!(found[0].starts_with("wherry.toml:2: this is not TOML: "), "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("WHERRY_MDNS is \"?\"")), "{found:?}");
    let twice = problems(&sources("site = \"a\"\nsite = \"b\"\n", &[], &[]));
    assert!(twice[0].contains("wherry.toml:2"), "{twice:?}");
}

#[test]
fn a_single_value_is_no_array() {
    let found = problems(&sources("site = [\"a\"]", &[], &[]));
    assert!(found[0].starts_with("wherry.toml:1: site is an array; expected a name"), "{found:?}");
}

#[test]
fn what_kubernetes_puts_into_every_container_is_nobodys_mistake() {
    let links = [
        ("WHERRY_SERVICE_HOST", "10.0.0.1"),
        ("WHERRY_SERVICE_PORT", "5050"),
        ("WHERRY_SERVICE_PORT_REGISTRY", "5050"),
        ("WHERRY_PORT", "tcp://10.0.0.1:5050"),
        ("WHERRY_PORT_5050_TCP_ADDR", "10.0.0.1"),
        ("WHERRY_GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("WHERRY_GATEWAY_PORT", "tcp://10.0.0.1:5050"),
        ("WHERRY_GATEWAY_PORT_5050_TCP", "tcp://10.0.0.1:5050"),
    ];
    assert_eq!(unknown(&links), [""; 0]);
    assert_eq!(unknown(&[("WHERRY_PORT", "5050")]).len(), 1);
}

fn unknown(variables: &[(&str, &str)]) -> Vec<String> {
    let sources = sources("", variables, &[]);
    good(&sources);
    unknown_variables(&sources.variables).iter().map(ToString::to_string).collect()
}

#[test]
fn a_variable_that_is_no_setting_stops_nothing_and_is_told_of_with_the_nearest_that_is_one() {
    let variables = [
        ("WHERRY_GATWAY", "x"),
        ("WHERRY_CONFG", "x"),
        ("WHERRY_BIN", "/bin/wherry"),
        ("WHERRY_CONFIG", "w.toml"),
        ("WHERRY_UNSET", ""),
        ("WHERRY_SITE", "harbour"),
        ("PATH", "/bin"),
    ];
    let expected = [
        "WHERRY_GATWAY is no setting; did you mean WHERRY_GATEWAY?",
        "WHERRY_CONFG is no setting; did you mean WHERRY_CONFIG?",
        "WHERRY_BIN is no setting; 'wherry config' lists those that exist",
    ];
    assert_eq!(unknown(&variables), expected);
}

#[test]
fn values_out_of_their_bounds_are_refused() {
    for (key, bad) in [
        ("gateway", "localhost:5050"),
        ("gateway", "127.0.0.1"),
        ("gateway", "127.0.0.1:70000"),
        ("site", ""),
        ("site", "two words"),
        ("default_origin", "https://docker.io"),
        ("default_origin", "docker.io/library"),
        ("default_origin", "host:0"),
        ("default_origin", "a:b:1"),
        ("insecure", "registry"),
        ("disk_budget", "0"),
        ("disk_budget", "1KiB"),
        ("tag_ttl", "400d"),
        ("origin_stall_timeout", "0s"),
        ("log", "wherry=chatty"),
        ("log_format", "yaml"),
        ("bootstrap", "192.0.2.7:4050"),
        ("bootstrap", "/ip4/192.0.2.7"),
        ("bootstrap", "/ip4/192.0.2/tcp/4050"),
        ("bootstrap", "/ip4/192.0.2.7/tcp/4050/p2p/nobody"),
        ("bootstrap", "/ip4/192.0.2.7/tcp"),
        ("bootstrap", ""),
        ("data", " "),
    ] {
        let found = problems(&sources("", &[], &[(key, &[bad])]));
        assert_eq!(found.len(), 1, "{key} {bad}: {found:?}");
    }
    let peer = wherry_proto::SecretKey::from_seed([1; 32]).node();
    for (key, fine) in [
        ("bootstrap", format!("/ip4/192.0.2.7/udp/4050/quic-v1/p2p/{peer}")),
        ("bootstrap", format!("/dnsaddr/seed.example/p2p/{peer}")),
        ("bootstrap", "/ip6/::1/tcp/4050".to_owned()),
        ("default_origin", "[fd00::1]:5000".to_owned()),
        ("insecure", "[::1]".to_owned()),
        ("tag_ttl", "0".to_owned()),
        ("gateway", "[::1]:0".to_owned()),
    ] {
        let mut sources = sources("", &[], &[]);
        sources.flags.push((key, vec![fine.clone()]));
        assert!(load(&sources).is_ok(), "{key} {fine}");
    }
}

#[test]
fn two_services_on_one_port_are_an_error_and_port_0_is_none() {
    let found = problems(&sources("", &[], &[("bulk", &["10.0.0.1:4050"])]));
    assert!(found[0].starts_with("--bulk is 10.0.0.1:4050, which the key peers takes"), "{found:?}");
    let all: [(&'static str, &[&str]); 2] = [("gateway", &["127.0.0.1:0"]), ("status", &["127.0.0.1:0"])];
    good(&sources("", &[], &all));
}

#[test]
fn the_data_folder_is_where_the_system_wants_it() {
    let mut sources = sources("", &[], &[]);
    sources.surroundings.xdg_data_home = Some("/xdg".into());
    assert_eq!(good(&sources).config.data, Path::new("/xdg/wherry"));
    sources.surroundings.root = true;
    let config = good(&sources).config;
    assert_eq!(config.data, Path::new("/var/lib/wherry"));
    assert_eq!(config.control, Path::new("/run/wherry/control.sock"));
    sources.surroundings = Surroundings::default();
    assert!(problems(&sources)[0].contains("no HOME"), "{:?}", problems(&sources));
    sources.flags.push(("data", vec!["/d".to_owned()]));
    assert_eq!(good(&sources).config.control, Path::new("/d/control.sock"));
}

#[test]
fn node_and_client_commands_agree_on_the_control_socket() {
    type Case = (&'static str, &'static [(&'static str, &'static str)], Flags, &'static str);
    type Flags = &'static [(&'static str, &'static [&'static str])];
    let cases: [Case; 7] = [
        ("", &[], &[("data", &["/d"])], "/d/control.sock"),
        ("", &[("WHERRY_DATA", "/d")], &[], "/d/control.sock"),
        ("", &[("WHERRY_DATA", "/d"), ("WHERRY_CONTROL", "/c")], &[], "/c"),
        ("", &[("WHERRY_CONTROL", "/c")], &[("data", &["/d"])], "/d/control.sock"),
        ("control = \"/f\"", &[], &[], "/f"),
        ("control = \"/f\"", &[("WHERRY_DATA", "/d")], &[], "/d/control.sock"),
        ("data = \"/f\"", &[], &[("control", &["/c"])], "/c"),
    ];
    for (file, variables, flags, expected) in cases {
        let sources = sources(file, variables, flags);
        assert_eq!(good(&sources).config.control, Path::new(expected), "{file} {variables:?} {flags:?}");
        assert_eq!(control_sockets(&sources), [Path::new(expected)]);
    }
    let broken = sources("gateway = 1\ndata = \"/f\"", &[("WHERRY_NONSENSE", "1")], &[]);
    assert_eq!(control_sockets(&broken), [Path::new("/f/control.sock")]);
}

#[test]
fn where_nothing_says_which_node_is_meant_the_users_own_comes_before_the_systems() {
    let mut sources = sources("site = \"harbour\"", &[], &[]);
    let (own, system) = ("/home/ada/.local/share/wherry/control.sock", "/run/wherry/control.sock");
    assert_eq!(control_sockets(&sources), [Path::new(own), Path::new(system)]);
    sources.surroundings.root = true;
    assert_eq!(control_sockets(&sources), [Path::new(system)]);
    sources.surroundings = Surroundings::default();
    assert_eq!(control_sockets(&sources), [Path::new(system)]);
    // The node of that folder is root's or that of a user of its own.
    sources.flags.push(("data", vec!["/var/lib/wherry".to_owned()]));
    assert_eq!(control_sockets(&sources), [Path::new("/var/lib/wherry/control.sock"), Path::new(system)]);
}

#[test]
fn what_is_printed_is_a_file_that_gives_the_same_configuration() {
    let flags: [(&'static str, &[&str]); 6] = [
        ("data", &["/with \"quotes\" and \\"]),
        ("bootstrap", &["/ip4/192.0.2.7/tcp/4050"]),
        ("disk_budget", &["1.5GiB"]),
        ("tag_ttl", &["90m"]),
        ("mdns", &["false"]),
        ("insecure", &["a.example", "b.example:5000"]),
    ];
    let first = good(&sources("", &[("WHERRY_SITE", "harbour")], &flags));
    let printed = first.to_toml();
    assert!(printed.contains("site = \"harbour\"  # WHERRY_SITE\n"), "{printed}");
    assert!(printed.contains("gateway = \"127.0.0.1:5050\"  # default\n"), "{printed}");
    let mut again = good(&sources(&printed, &[], &[])).config;
    // The socket follows the data folder in one and stands in the file of the other.
    assert_eq!(again.control, first.config.control);
    again.control.clone_from(&first.config.control);
    assert_eq!(again, first.config);
    assert_eq!(first.to_json()["tag_ttl"], serde_json::json!({ "value": "1h30m", "source": "--tag-ttl" }));
}

#[test]
fn every_key_has_a_default_that_it_accepts_and_names_of_its_own() {
    let config = Config::new("/d");
    for key in &KEYS {
        let values = match key.value(&config) {
            Some(serde_json::Value::String(text)) => vec![text],
            Some(serde_json::Value::Bool(value)) => vec![value.to_string()],
            _ => continue,
        };
        let mut copy = config.clone();
        assert!((key.set)(&mut copy, &values).is_some(), "{}", key.name);
        assert_eq!(copy, config, "{}", key.name);
    }
    let names: std::collections::BTreeSet<_> = KEYS.iter().map(Key::long).collect();
    assert_eq!(names.len(), KEYS.len());
    assert_eq!(config.tag_ttl, Duration::from_secs(60));
}

#[test]
fn limits_are_read_from_every_source_and_nonsense_in_them_is_refused_all_of_it_at_once() {
    let file = "wan_down = \"4Mbit/s\"\nwan_window = [\"01:00-05:00\", \"Sat 00:00-24:00\"]\n";
    let loaded = good(&sources(file, &[("WHERRY_WAN_BUDGET", "2GiB")], &[("wan_up", &["500kB/s"])]));
    let wan = &loaded.config.wan;
    assert_eq!((wan.down, wan.up, wan.budget), (Some(500_000), Some(500_000), Some(2 << 30)));
    assert_eq!(wan.windows.len(), 2);
    assert!(
        loaded.to_toml().contains("wan_window = [\"01:00-05:00\", \"Sat 00:00-24:00\"]"),
        "{}",
        loaded.to_toml()
    );
    let again = good(&sources(&loaded.to_toml(), &[], &[]));
    assert_eq!(again.config, loaded.config);
    let by_variable = good(&sources("", &[("WHERRY_WAN_WINDOW", "01:00-05:00,Sat 00:00-24:00")], &[]));
    assert_eq!(by_variable.config.wan.windows, wan.windows);

    let file = "wan_down = \"fast\"\nwan_up = \"4Mb/s\"\nwan_window = [\"01:00-05:00\", \"25:00-26:00\", \"Sab 1:00-2:00\"]\n";
    let found = problems(&sources(file, &[("WHERRY_WAN_BUDGET", "0")], &[("wan_down", &["1kbit/s"])]));
    let expected = [
        "wherry.toml:1: wan_down is \"fast\"; expected a rate of at least 64kbit/s",
        "wherry.toml:2: wan_up is \"4Mb/s\"; expected a rate",
        "wherry.toml:3: wan_window is \"25:00-26:00\", \"Sab 1:00-2:00\"; expected each to be hours",
        "WHERRY_WAN_BUDGET is \"0\"; expected a size of at least 1MiB",
        "--wan-down is \"1kbit/s\"; expected a rate of at least 64kbit/s",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, start) in found.iter().zip(expected) {
        assert!(found.starts_with(start), "{found}");
    }
}

#[test]
fn origins_are_set_in_tables_variables_and_flags_setting_by_setting() {
    let file = "[origin.\"docker.io\"]\nmirror = [\"a.example\", \"b.example/hub\"]\ntag_ttl = \"5m\"\n\
                [origin.\"registry.lab:5000\"]\nalias = \"lab\"\ninsecure = true\n";
    let flags: [(&'static str, &[&str]); 1] =
        [("origin", &["docker.io mirror=c.example", "quay.io rate=4Mbit/s", "docker.io mirror=d.example"])];
    let variables = [("WHERRY_ORIGIN", "docker.io tag-ttl=10m, docker.io user=ada password_variable=X")];
    let loaded = good(&sources(file, &variables, &flags));
    let origins = &loaded.config.origins;
    let hub = &origins[&"docker.io".parse().unwrap()];
    assert_eq!(hub.mirrors.iter().map(ToString::to_string).collect::<Vec<_>>(), ["c.example", "d.example"]);
    assert_eq!(hub.tag_ttl, Some(Duration::from_secs(600)));
    assert_eq!(hub.user.as_deref(), Some("ada"));
    let lab = &origins[&"registry.lab:5000".parse().unwrap()];
    assert_eq!((lab.aliases.as_slice(), lab.insecure), (&["lab".to_owned()][..], true));
    assert_eq!(origins[&"quay.io".parse().unwrap()].rate, Some(500_000));
    let printed = loaded.to_toml();
    assert_eq!(good(&sources(&printed, &[], &[])).config.origins, *origins, "{printed}");
    assert_eq!(loaded.to_json()["origin"]["value"]["docker.io"]["tag_ttl"], "10m");
}

#[test]
fn nonsense_about_origins_is_reported_setting_by_setting_and_where_it_stands() {
    let file = "[origin.\"docker.io\"]\ntag_ttl = 5\nmirrors = [\"a.example\"]\n[origin.registry]\ninsecure = true\n";
    let flags: [(&'static str, &[&str]); 1] = [(
        "origin",
        &["quay.io", "a.io alias=A", "b.io alias=x", "c.io alias=x", "d.io user=ada", "e.io ca=/none"],
    )];
    let found = problems(&sources(file, &[], &flags));
    let expected = [
        "wherry.toml:2: origin is docker.io tag_ttl \"5\"; expected a time with its unit",
        "wherry.toml:3: origin is docker.io \"mirrors\", which is no setting; expected one of alias, mirror",
        "wherry.toml:5: origin is \"registry\", which is no registry; expected a host",
        "--origin is \"quay.io\"; expected each to be a registry and what is set for it",
        "--origin is a.io alias \"A\"; expected lowercase letters",
        "--origin is \"/none\", which cannot be read",
        "--origin is \"x\", an alias of b.io and of c.io; expected",
        "--origin is user \"ada\" for d.io, without a password; expected password_file",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, start) in found.iter().zip(expected) {
        assert!(found.starts_with(start), "{found}");
    }
}

#[test]
fn what_would_show_one_registry_what_is_meant_for_another_is_refused() {
    let file = "[origin.\"a.example\"]\naccess = \"verify\"\n[origin.\"b.example\"]\naccess = \"verify\"\n";
    let found =
        problems(&sources(file, &[], &[("users", &["/dev/null"]), ("rights", &["anna=pull", "anna=push"])]));
    assert_eq!(found.len(), 4, "{found:#?}");
    for part in
        ["there is no name in it", "one registry alone", "what is this gateway's own", "set twice for anna"]
    {
        assert!(found.iter().any(|problem| problem.contains(part)), "{part}: {found:#?}");
    }
}

#[test]
fn rules_for_tags_that_never_count_are_refused_all_at_once_with_the_one_that_takes_their_tags() {
    let rules = |rules: &[&str]| sources("", &[], &[("tag_policy", rules)]);
    let refused = |all: &[&str]| problems(&rules(all));
    let told =
        refused(&["docker.io/*=frozen", "docker.io/library/a:v*=site-first", "*=frozen", "quay.io=frozen"]);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].contains("--tag-policy") && told[0].contains("'docker.io/library/a:v*=site-first'"),
        "{told:?}"
    );
    assert!(told[0].contains("since 'docker.io=frozen'") && told[1].contains("since 'frozen'"), "{told:?}");
    for idle in [
        ["a.io/b=frozen", "a.io/b=site-first"],
        ["a.io/b=frozen", "a.io/b:1=site-first"],
        ["a.io/b*=frozen", "a.io/bc/*=site-first"],
        ["site-first", "origin-first"],
        ["*.io/*:v*=frozen", "a.io/b:v1*=frozen"],
    ] {
        assert_eq!(refused(&idle).len(), 1, "{idle:?}");
    }
    for fine in [
        ["a.io/b:1=site-first", "a.io/b=frozen"],
        ["a.io/b/*=frozen", "a.io/*=site-first"],
        ["a.io/b:v*=frozen", "a.io/b:*=site-first"],
        ["a.io=frozen", "b.io=frozen"],
        ["a.io/*:v*=frozen", "a.io/b:w1=site-first"],
    ] {
        assert_eq!(good(&rules(&fine)).config.tag_policy.len(), 2, "{fine:?}");
    }
}

#[test]
fn what_does_not_go_together_for_an_origin_is_told_with_what_to_do() {
    for (says, what, expected) in [
        ("user=a", "user \"a\" for a.io, without a password", "password_file"),
        ("password_file=/x", "password_file for a.io, without a user", "user, a name"),
        ("password_variable=X", "password_variable for a.io, without a user", "user, a name"),
        ("user=a password_file=/x password_variable=X", "both password_file", "one of the two"),
        ("user=a password_variable=X credentials=/x", "both credentials and user", "user with its password"),
        ("certificate_key=/x", "certificate_key for a.io, without certificate", "beside it"),
        ("grace=1h", "whose clients are not verified", "access = verify beside it"),
        ("mirror=a.io/b", "not another registry", "other registries"),
    ] {
        let told = problems(&sources("", &[], &[("origin", &[&format!("a.io {says}")])]));
        let found = told.iter().find(|it| it.contains(what)).unwrap_or_else(|| panic!("{says}: {told:?}"));
        assert!(found.split("; expected ").nth(1).is_some_and(|it| it.contains(expected)), "{found}");
    }
}
