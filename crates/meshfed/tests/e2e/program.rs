//! The program under test as a process.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// The path of the program.
pub fn path() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_meshfed"))
}

pub fn meshfed() -> Command {
    let mut command = Command::new(path());
    command.stdin(Stdio::null());
    command
}

/// Runs to the end; a program that does not come to one is killed, with all that it started, and fails the
/// test.
pub fn run(command: &mut Command) -> Output {
    run_within(command, PATIENCE)
}

/// The same, for what takes longer.
pub fn run_within(command: &mut Command, patience: Duration) -> Output {
    let mut child = command
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let readers = [
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).unwrap();
            bytes
        }),
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).unwrap();
            bytes
        }),
    ];
    let status = wait(&mut child, patience);
    if status.is_none() {
        // What it left behind holds the ends of the pipes.
        let group = format!("-{}", child.id());
        let killed = Command::new("bash")
            .args(["-c", "kill -KILL -- $0 2>/dev/null", &group])
            .status();
        killed.unwrap();
    }
    let [stdout, stderr] = readers.map(|reader| reader.join().unwrap());
    let Some(status) = status else {
        panic!(
            "it did not end\n{}\n{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
    };
    Output {
        status,
        stdout,
        stderr,
    }
}

/// Waits for the end of a child; kills it and gives `None` when that takes too long.
pub fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if began.elapsed() > patience {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Both outputs as text, for messages.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
#[should_panic(expected = "it did not end")]
fn a_script_that_does_not_end_is_killed_with_what_it_started() {
    let script = "sleep 1000 & sleep 1000";
    run_within(
        Command::new("bash").args(["-c", script]),
        Duration::from_millis(100),
    );
}
