//! `cove demo` as a user runs it: all of it happens and nothing is left.

use std::process::{Command, Stdio};

#[test]
fn the_demo_shows_everything_and_clears_away() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cove"))
        .arg("demo")
        .env("TMPDIR", dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}\n{said}");
    for (what, times) in [("wake 1", 1), ("wake 2", 1), ("scaled out", 1), ("at zero", 2), ("cleared", 1)] {
        assert!(shown.matches(what).count() >= times, "`{what}` is not shown {times} times:\n{shown}");
    }
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "wider than 80 columns:\n{shown}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
