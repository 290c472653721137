//! Device trees: a machine's own, as QEMU makes it, with more in it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};

/// Makes the compiler count lines, and name the file, anew.
const MORE: &str = "\n# 1 \"what was added\"\n";

/// Compiles the tree that QEMU dumped to `own`, with `more` source behind it, to the file `to`.
/// `dtc` makes commands that run the compiler.
pub(crate) fn extend(
    dtc: impl Fn() -> Result<Command>,
    own: &Path,
    more: &str,
    to: &Path,
) -> Result<()> {
    let mut decompiler = convert(dtc()?, "dtb", "dts");
    let own = run(decompiler.arg(own), "").context("cannot read the machine's device tree")?;
    let source = [&own, MORE, more].concat();
    let mut compiler = convert(dtc()?, "dts", "dtb");
    let made = run(compiler.arg("-o").arg(to), &source);
    made.map(drop).context("the guest's device tree is wrong")
}

fn convert(mut command: Command, from: &str, to: &str) -> Command {
    // There are warnings of QEMU's tree.
    command.args(["-qq", "-I", from, "-O", to]);
    command
}

/// Runs the compiler with this input, and gives back what it printed.
fn run(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run dtc")?;
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // One that ends before it has read everything says why.
        scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    });
    let output = output.context("cannot wait for dtc")?;
    ensure!(
        output.status.success(),
        "dtc: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("dtc did not print text")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::setup::find_dtc as dtc;

    /// A tree that is compiled.
    fn own(directory: &TempDir) -> std::path::PathBuf {
        let path = directory.path().join("own.dtb");
        let source = "/dts-v1/; / { uart: serial { status = \"okay\"; }; };";
        run(
            convert(dtc().unwrap(), "dts", "dtb").arg("-o").arg(&path),
            source,
        )
        .unwrap();
        path
    }

    #[test]
    fn what_is_added_is_merged() {
        let directory = TempDir::new().unwrap();
        let to = directory.path().join("machine.dtb");
        let more = "/ { serial { clocks = <&clock>; }; clock: clock { #clock-cells = <0>; }; };";
        extend(dtc, &own(&directory), more, &to).unwrap();
        let merged = run(convert(dtc().unwrap(), "dtb", "dts").arg(&to), "").unwrap();
        for line in [
            "status = \"okay\";",
            "clocks = <0x01>;",
            "phandle = <0x01>;",
        ] {
            assert!(merged.contains(line), "{merged}");
        }
    }

    #[test]
    fn a_mistake_is_told_by_its_line() {
        let directory = TempDir::new().unwrap();
        let to = directory.path().join("machine.dtb");
        let error = extend(dtc, &own(&directory), "/ {\n  = 1;\n};", &to).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("what was added:2"), "{error}");
        assert!(fs::metadata(&to).is_err());
    }
}
