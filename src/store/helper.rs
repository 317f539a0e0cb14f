//! Running a program that prints credentials.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Most bytes that are read of what one prints; keys and a token are a few thousand.
const OUTPUT_LIMIT: u64 = 256 << 10;

/// A program and its children, killed unless it has come to its end.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Nobody has waited for the leader yet, so that its number is still its own. It may have
            // ended by itself, which is as good.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Runs a shell command, and gives what it prints. After `deadline`, or when nobody waits any more, it is
/// killed with its children.
///
/// # Errors
/// In words that follow on the program's name, and hold nothing it printed.
pub(super) async fn output(command: &str, deadline: Duration) -> Result<Vec<u8>, String> {
    let mut process = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let pid = process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let mut group = Group(pid);
    let stdout = process.stdout.take();
    let run = async {
        let mut printed = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(OUTPUT_LIMIT).read_to_end(&mut printed).await?;
        }
        // What it has left behind without a way to be heard may go on.
        process.wait().await.map(|status| (status, printed))
    };
    let ended = timeout(deadline, run)
        .await
        .map_err(|_| format!("gave no answer for {:.1} s, and was killed", deadline.as_secs_f64()));
    let (status, printed) = ended?.map_err(|error| format!("failed: {error}"))?;
    group.0 = None;
    if !status.success() {
        return Err(format!("failed: {status}"));
    }
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_alive(pid: &str) -> bool {
        // A zombie that nobody has waited for yet is dead.
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
    }

    async fn until_dead(pid: &str) {
        for _ in 0..500 {
            if !is_alive(pid) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("process {pid} lives on");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let shown = pids.display();
        for command in [
            format!("sleep 1000 & echo $! $$ > {shown}; wait"),
            // Its leader has ended, and its output is still open.
            format!("sleep 1000 & echo $! $$ > {shown}; echo '{{}}'"),
            // Its output is closed, and it goes on.
            format!("sleep 1000 >&- & echo $! $$ > {shown}; exec >&-; wait"),
        ] {
            let error = output(&command, Duration::from_secs(2)).await.unwrap_err();
            assert_eq!(error, "gave no answer for 2.0 s, and was killed");
            for pid in std::fs::read_to_string(&pids).unwrap().split_whitespace() {
                until_dead(pid).await;
            }
            std::fs::remove_file(&pids).unwrap();
        }
        // So is one that nobody waits for any more.
        let command = format!("sleep 1000 & echo $! $$ > {shown}; wait");
        let abandoned = output(&command, Duration::from_secs(1000));
        let _ = timeout(Duration::from_secs(2), abandoned).await.unwrap_err();
        for pid in std::fs::read_to_string(&pids).unwrap().split_whitespace() {
            until_dead(pid).await;
        }
    }
}
