//! Tests that need another environment than this process has.

use std::path::Path;
use std::process::Command;

/// Set in the child.
const MARK: &str = "WHERRY_GATEWAY_TEST_CHILD";

/// Runs the named test again in a process with these variables. In that process returns `false`, and the test
/// goes on; in this one returns `true` when the other has passed.
pub(crate) fn passed_in_child(test: &str, variables: &[(&str, &Path)]) -> bool {
    if std::env::var_os(MARK).is_some() {
        return false;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(MARK, "1").envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "the test '{test}' was not found: {text}");
    true
}
