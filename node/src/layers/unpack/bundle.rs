//! The configuration with which an OCI runtime runs a bundle.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::disk::Disk;
use super::{UnpackError, text_of, users};
use crate::layers::ImageConfig;
use crate::layers::tree::Tree;

/// The version of the runtime specification.
const VERSION: &str = "1.0.2";

/// What is looked through for programs if the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What root may do in a container: what docker and podman let it do.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What of `/proc` and `/sys` tells of the machine, and is hidden.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

/// What of `/proc` changes the machine, and can only be read.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Who unpacks an image, and so who runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

impl Caller {
    /// Whether files may be given to others, and devices made.
    pub(super) fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// What is to be in `config.json`.
pub(super) fn config(
    image: &ImageConfig,
    tree: &Tree,
    disk: &mut Disk,
    caller: Caller,
) -> Result<String, UnpackError> {
    let by_number = image.user.split(':').all(|part| part.parse::<u32>().is_ok());
    let users = |disk: &mut Disk, path| match text_of(tree, disk, path) {
        // Numbers do without, where the caller may not read what they mean.
        Err(_) if image.user.is_empty() || by_number => Ok(String::new()),
        text => text,
    };
    let (passwd, group) = (users(disk, "/etc/passwd")?, users(disk, "/etc/group")?);
    let user = users::find(&image.user, &passwd, &group)?;
    let mut text = serde_json::to_string_pretty(&document(image, &user, caller))
        .map_err(|error| UnpackError::Config(error.into()))?;
    text.push('\n');
    Ok(text)
}

fn document(image: &ImageConfig, user: &users::User, caller: Caller) -> Value {
    let mut args: Vec<&String> = image.entrypoint.iter().chain(&image.cmd).collect();
    let shell = "/bin/sh".to_owned();
    if args.is_empty() {
        args.push(&shell);
    }
    let mut env = image.env.clone();
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(0, PATH.to_owned());
    }
    // Another user than root is given nothing of what root may do.
    let held: &[&str] = if user.uid == 0 { &CAPABILITIES } else { &[] };
    let capabilities = json!({ "bounding": CAPABILITIES, "effective": held, "permitted": held });
    let cwd = if image.working_dir.is_empty() { "/" } else { &image.working_dir };
    let mut process_user = json!({ "uid": user.uid, "gid": user.gid });
    // Groups of which the caller has none cannot be taken on in a user namespace of theirs.
    if caller.is_root() && !user.groups.is_empty() {
        process_user["additionalGids"] = json!(user.groups);
    }
    json!({
        "ociVersion": VERSION,
        "process": {
            "terminal": false,
            "user": process_user,
            "args": args,
            "env": env,
            "cwd": cwd,
            "capabilities": capabilities,
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "wherry",
        "mounts": mounts(caller),
        "annotations": annotations(image),
        "linux": linux(caller),
    })
}

fn mounts(caller: Caller) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    let mut all = vec![mount("/proc", "proc", &[])];
    all.push(mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]));
    if caller.is_root() {
        terminals.push("gid=5");
    }
    all.push(mount("/dev/pts", "devpts", &terminals));
    all.push(mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]));
    all.push(mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    if caller.is_root() {
        all.push(mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]));
    } else {
        // A network that is the machine's has a /sys that only the machine may mount.
        let mut sys = mount("/sys", "none", &["rbind", "nosuid", "noexec", "nodev", "ro"]);
        sys["source"] = json!("/sys");
        all.push(sys);
    }
    all.push(mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]));
    Value::Array(all)
}

fn linux(caller: Caller) -> Value {
    let mut namespaces = vec!["pid", "ipc", "uts", "mount", "cgroup"];
    namespaces.push(if caller.is_root() { "network" } else { "user" });
    let namespaces: Vec<Value> = namespaces.into_iter().map(|kind| json!({ "type": kind })).collect();
    let mut linux = json!({ "namespaces": namespaces, "maskedPaths": MASKED, "readonlyPaths": READ_ONLY });
    if caller.is_root() {
        linux["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    } else {
        let only = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": 1 }]);
        linux["uidMappings"] = only(caller.uid);
        linux["gidMappings"] = only(caller.gid);
    }
    linux
}

/// What the image says of itself, in the words that the image specification has for that.
fn annotations(image: &ImageConfig) -> BTreeMap<String, String> {
    let mut all = image.labels.clone();
    let said = [("os", &image.os), ("architecture", &image.architecture), ("stopSignal", &image.stop_signal)];
    for (name, value) in said.into_iter().filter(|(_, value)| !value.is_empty()) {
        all.entry(format!("org.opencontainers.image.{name}")).or_insert_with(|| value.clone());
    }
    all
}
