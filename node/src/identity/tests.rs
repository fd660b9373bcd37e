use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::{TempDir, tempdir};

use super::*;

const NOW: u64 = 1_800_000_000;
const SEED: &str = "/ip4/192.0.2.7/tcp/4050";

fn mode(folder: &TempDir, file: &str) -> u32 {
    fs::metadata(folder.path().join(file)).unwrap().permissions().mode() & 0o777
}

fn read(folder: &TempDir, file: &str) -> String {
    fs::read_to_string(folder.path().join(file)).unwrap()
}

fn line_for(operator: &TempDir, node: &TempDir) -> JoinLine {
    let node = show(node.path()).unwrap().node;
    admit(operator.path(), node, NOW, 30, vec![SEED.to_owned()]).unwrap()
}

#[test]
fn a_node_alone_gets_a_network_of_its_own_and_keeps_it() {
    let folder = tempdir().unwrap();
    let first = load_or_create(&folder.path().join("a/b"), NOW).unwrap();
    let second = load_or_create(&folder.path().join("a/b"), NOW).unwrap();
    assert_eq!(first.key.node(), second.key.node());
    assert_eq!(first.certificate, second.certificate);
    let network = first.certificate.network;
    assert_eq!(first.certificate.check(&network, &first.key.node(), NOW, 0), Ok(()));
}

#[test]
fn secrets_are_for_their_owner_alone() {
    let folder = tempdir().unwrap();
    init(folder.path(), NOW, DEFAULT_DAYS).unwrap();
    assert_eq!(mode(&folder, "identity"), 0o600);
    assert_eq!(mode(&folder, "network/operator.key"), 0o600);
    for file in ["identity", "network/operator.key"] {
        fs::set_permissions(folder.path().join(file), fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_create(folder.path(), NOW).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::set_permissions(folder.path().join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn a_damaged_key_is_an_error_and_is_left_as_it_is() {
    for damage in [
        &b""[..],
        b"wherry-node-key-1:",
        b"wherry-node-key-1:zz",
        b"\xff\xfe raw bytes \x00",
        &[7; 32],
        "wherry-node-key-1:é".as_bytes(),
    ] {
        let folder = tempdir().unwrap();
        let path = folder.path().join("identity");
        fs::write(&path, damage).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for result in [load_or_create(folder.path(), NOW).map(drop), show(folder.path()).map(drop)] {
            assert!(matches!(result, Err(IdentityError::Key { .. })), "{result:?}");
        }
        assert_eq!(fs::read(&path).unwrap(), damage);
    }
    let folder = tempdir().unwrap();
    init(folder.path(), NOW, 1).unwrap();
    fs::copy(folder.path().join("network/operator.key"), folder.path().join("identity")).unwrap();
    let error = load_or_create(folder.path(), NOW).unwrap_err();
    assert!(matches!(error, IdentityError::Key { expected: "wherry-node-key-1:", .. }), "{error}");
}

#[test]
fn a_second_init_changes_nothing() {
    let folder = tempdir().unwrap();
    init(folder.path(), NOW, 1).unwrap();
    let before = ["identity", "certificate", "network/operator.key"].map(|file| read(&folder, file));
    assert!(matches!(init(folder.path(), NOW, 1), Err(IdentityError::AlreadyOperator(_))));
    let after = ["identity", "certificate", "network/operator.key"].map(|file| read(&folder, file));
    assert_eq!(before, after);

    let member = tempdir().unwrap();
    join(member.path(), &line_for(&folder, &member).to_string(), NOW, false).unwrap();
    assert!(matches!(init(member.path(), NOW, 1), Err(IdentityError::AlreadyMember(_))));
}

#[test]
fn an_admitted_node_joins_with_its_line_and_starts_as_a_member() {
    let (operator, member) = (tempdir().unwrap(), tempdir().unwrap());
    let network = init(operator.path(), NOW, 365).unwrap().certificate.network;
    let line = line_for(&operator, &member);
    // As it comes out of a terminal or a mail.
    let pasted = format!("  {}\n", line.to_string().replace(' ', "\n  "));
    join(member.path(), &pasted, NOW, false).unwrap();
    let membership = load_or_create(member.path(), NOW).unwrap();
    assert_eq!(membership.certificate, line.certificate);
    assert_eq!(membership.certificate.network, network);
    assert_eq!(membership.certificate.expires, NOW + 30 * 86_400);
    assert_eq!(membership.bootstrap, [SEED]);
    let shown = show(operator.path()).unwrap();
    assert_eq!((shown.operates, shown.admitted), (Some(network), vec![membership.key.node()]));
}

#[test]
fn a_line_for_another_node_a_damaged_or_an_old_one_changes_nothing() {
    let (operator, member, other) = (tempdir().unwrap(), tempdir().unwrap(), tempdir().unwrap());
    init(operator.path(), NOW, 365).unwrap();
    let line = line_for(&operator, &member).to_string();
    let join_at = |folder: &TempDir, line: &str, now| join(folder.path(), line, now, false).unwrap_err();
    let error = join_at(&other, &line, NOW);
    assert!(matches!(error, IdentityError::Refused(CertificateError::OtherNode { .. })), "{error}");
    let error = join_at(&member, &line, NOW + 31 * 86_400);
    assert!(matches!(error, IdentityError::Refused(CertificateError::Expired { .. })), "{error}");
    for damaged in
        ["", "hello", &line[..60], &line.replace("tcp", "smtp"), &format!("{line}{}", " /x".repeat(99))]
    {
        let error = join_at(&member, damaged, NOW);
        assert!(matches!(error, IdentityError::Line(_) | IdentityError::Address(_)), "{error}");
    }
    let mut bent = line.clone().into_bytes();
    bent[60] = if bent[60] == b'A' { b'B' } else { b'A' };
    join_at(&member, std::str::from_utf8(&bent).unwrap(), NOW);
    assert!(!member.path().join("certificate").exists());
}

#[test]
fn only_a_network_that_nobody_else_is_in_is_left_without_being_told_to() {
    let (first, second, node) = (tempdir().unwrap(), tempdir().unwrap(), tempdir().unwrap());
    init(first.path(), NOW, 365).unwrap();
    init(second.path(), NOW, 365).unwrap();
    // Started once before it was admitted: its own network is left, and the key of that network is kept.
    load_or_create(node.path(), NOW).unwrap();
    let own = read(&node, "network/operator.key");
    join(node.path(), &line_for(&first, &node).to_string(), NOW, false).unwrap();
    assert_eq!(read(&node, &format!("network/operator.key.left-{NOW}")), own);
    assert!(matches!(
        admit(node.path(), show(second.path()).unwrap().node, NOW, 1, Vec::new()),
        Err(IdentityError::NotOperator { .. })
    ));
    // A real network is left on demand only.
    let other = line_for(&second, &node).to_string();
    let error = join(node.path(), &other, NOW, false).unwrap_err();
    assert!(matches!(error, IdentityError::OtherNetwork { .. }), "{error}");
    join(node.path(), &other, NOW, true).unwrap();
    // A renewal is none.
    join(node.path(), &line_for(&second, &node).to_string(), NOW, false).unwrap();
    // An operator with members stays.
    let error = join(first.path(), &line_for(&second, &first).to_string(), NOW, false).unwrap_err();
    assert!(matches!(error, IdentityError::OtherNetwork { .. }), "{error}");
}

#[test]
fn an_older_line_of_the_same_network_is_taken_on_demand_only() {
    let (operator, member) = (tempdir().unwrap(), tempdir().unwrap());
    init(operator.path(), NOW, 365).unwrap();
    let node = show(member.path()).unwrap().node;
    let line = |days| admit(operator.path(), node, NOW, days, Vec::new()).unwrap().to_string();
    join(member.path(), &line(30), NOW, false).unwrap();
    join(member.path(), &line(60), NOW, false).unwrap();
    let error = join(member.path(), &line(59), NOW, false).unwrap_err();
    assert!(matches!(error, IdentityError::Older { .. }), "{error}");
    let expires = |days: u64| NOW + days * 86_400;
    assert_eq!(load_or_create(member.path(), NOW).unwrap().certificate.expires, expires(60));
    join(member.path(), &line(59), NOW, true).unwrap();
    assert_eq!(load_or_create(member.path(), NOW).unwrap().certificate.expires, expires(59));
}

#[test]
fn the_operators_own_certificate_renews_itself_and_no_other_does() {
    let (operator, member) = (tempdir().unwrap(), tempdir().unwrap());
    let first = init(operator.path(), NOW, 365).unwrap();
    let later = NOW + 360 * 86_400;
    let renewed = load_or_create(operator.path(), later).unwrap();
    assert_eq!(renewed.certificate.network, first.certificate.network);
    assert_eq!(renewed.certificate.expires, later + 365 * 86_400);
    let line = line_for(&operator, &member);
    join(member.path(), &line.to_string(), NOW, false).unwrap();
    assert_eq!(load_or_create(member.path(), later).unwrap().certificate, line.certificate);
}

#[test]
fn a_certificate_of_another_node_or_a_damaged_one_stops_the_start() {
    let (operator, member) = (tempdir().unwrap(), tempdir().unwrap());
    init(operator.path(), NOW, 365).unwrap();
    show(member.path()).unwrap();
    fs::copy(operator.path().join("certificate"), member.path().join("certificate")).unwrap();
    let error = load_or_create(member.path(), NOW).unwrap_err();
    assert!(matches!(error, IdentityError::NotAdmitted { .. }), "{error}");
    fs::write(member.path().join("certificate"), "wherry-certificate-1:AAAA").unwrap();
    let error = load_or_create(member.path(), NOW).unwrap_err();
    assert!(matches!(error, IdentityError::Certificate { .. }), "{error}");
    assert!(error.to_string().contains("wherry network join"), "{error}");
}
