//! Programs that people work with, in a mount that is checkpointed and rolled back under them: git, npm and a compiler.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::mount_layers::Layers;
use crate::support::mount::can_mount;

/// A shell in the mount, which stays where it is.
struct Shell {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Shell {
    fn new(dir: &Path) -> Self {
        let mut child = Command::new("bash")
            .current_dir(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("npm_config_cache", dir.join(".npm"))
            .env("HOME", dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Runs `script`, which must succeed, and gives what it prints.
    fn run(&mut self, script: &str) -> String {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "( set -e; {script} ) </dev/null 2>&1; echo \"@ended $?\"").unwrap();
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.said.read_line(&mut line).unwrap(), 0, "{script}: {printed}");
            match line.strip_prefix("@ended ") {
                Some(status) => {
                    assert_eq!(status.trim(), "0", "{script}: {printed}");
                    return printed;
                }
                None => printed += &line,
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What begins each of the programs' work in the directory of its own that it has.
const BEGIN: &str = "
mkdir git && cd git && git init -q -b main && git config user.name a && git config user.email a@b
git config gc.auto 0 && git config core.fsync all && echo 0 >n && git add -A && git commit -qm 0 && cd ..
mkdir -p npm/parts/one npm/parts/two && cd npm
echo '{\"name\":\"whole\",\"version\":\"1.0.0\"}' >package.json
for part in one two; do
  echo \"{\\\"name\\\":\\\"$part\\\",\\\"version\\\":\\\"1.0.0\\\"}\" >parts/$part/package.json
  echo \"module.exports='$part'\" >parts/$part/index.js
done
cd .. && mkdir rust && cd rust && echo 'mod part; fn main() { println!(\"{}\", part::N); }' >main.rs
";

/// One more step of each of them, which is the step `n`. Where a toolchain is another user's, C has to do.
fn step(n: usize) -> String {
    format!(
        "
cd git && echo {n} >n && mkdir -p d && seq {n} $(({n} + 2000)) >d/$(({n} % 7)) && git add -A && git commit -qm {n}
if [ $(({n} % 5)) = 0 ]; then git repack -qad; fi; cd ..
cd npm && npm install --offline --no-audit --no-fund --silent ./parts/one ./parts/two
test \"$(node -p 'require(\"one\") + require(\"two\")')\" = onetwo
if [ $(({n} % 2)) = 0 ]; then npm uninstall --offline --no-audit --silent one; fi; cd ..
cd rust && echo 'pub const N: u32 = {n};' >part.rs && echo '#include <stdio.h>
int main() {{ return !printf(\"{n}\"); }}' >main.c
if rustc --version >/dev/null; then rustc -C incremental=built -o main main.rs; else gcc -o main main.c; fi
test \"$(./main)\" = {n}"
    )
}

/// That what is there is what step `n` has left.
fn is_at(n: usize) -> String {
    format!(
        "
git -C git fsck --full --strict && test -z \"$(git -C git status --porcelain)\"
test \"$(git -C git log -1 --format=%s)\" = {n} && test \"$(cat git/n)\" = {n}
cd npm && npm ls --offline --silent && cd .. && test \"$(rust/main)\" = {n}"
    )
}

#[test]
fn programs_work_on_after_checkpoints_and_rollbacks() {
    if !can_mount("programs_work_on_after_checkpoints_and_rollbacks") {
        return;
    }
    let layers = Layers::new(&[]);
    let mut shell = Shell::new(&layers.at(""));
    shell.run(BEGIN);
    shell.run(&step(1));
    let (one, _) = layers.checkpoint();
    shell.run(&step(2));
    shell.run(&step(3));
    let (three, _) = layers.checkpoint();
    for (point, n) in [(&one, 1), (&three, 3)] {
        layers.roll_back(point);
        shell.run(&is_at(n));
        shell.run(&step(n + 10));
        shell.run(&is_at(n + 10));
    }
    drop(shell);
    layers.end();
}

#[test]
fn a_repository_is_whole_in_each_checkpoint_that_is_made_while_programs_work() {
    if !can_mount("a_repository_is_whole_in_each_checkpoint_that_is_made_while_programs_work") {
        return;
    }
    let layers = Layers::new(&["-o", "checkpoints=exact"]);
    layers.keep_all();
    let mut shell = Shell::new(&layers.at(""));
    shell.run(BEGIN);
    let ended = AtomicBool::new(false);
    let mut points = Vec::new();
    std::thread::scope(|scope| {
        let (shell, ended) = (&mut shell, &ended);
        scope.spawn(move || {
            // It ends also where a step fails.
            struct End<'a>(&'a AtomicBool);
            impl Drop for End<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let _end = End(ended);
            for n in 1..=4 {
                shell.run(&step(n));
            }
        });
        while !ended.load(Ordering::Relaxed) {
            points.push(layers.checkpoint().0);
            std::thread::sleep(std::time::Duration::from_millis(150));
        }
    });
    shell.run(&is_at(4));
    let each = points.len().div_ceil(12);
    let mut before = 0;
    for point in points.iter().step_by(each) {
        layers.roll_back(point);
        let said = shell.run("git -C git fsck --full && git -C git log -1 --format=%s");
        let n: usize = said.lines().last().unwrap().parse().unwrap();
        assert!(n >= before, "{n} after {before}");
        before = n;
    }
    drop(shell);
    layers.end();
}
