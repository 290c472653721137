//! `[[reset]]`: reset domains.

use std::path::PathBuf;
use std::sync::Arc;

use super::Builder;
use super::open::{one, placed};
use crate::host::linux::attribute::Mode;
use crate::host::linux::hook::HookReset;
use crate::host::sim::SimReset;
use crate::host::{Reset, ResetDriver};
use crate::platform::file;
use crate::platform::{Checked, Problem, Span};

enum ResetBacking {
    Gpio(file::Gpio),
    Hook(file::ResetHook),
    Sim,
}

impl Builder<'_> {
    pub(super) fn reset(&mut self, span: &Span, table: file::Reset, mode: Mode) -> Checked<Reset> {
        let (place, backing) = one(
            span,
            [
                ("gpio", placed(table.gpio, ResetBacking::Gpio)),
                ("hook", placed(table.hook, ResetBacking::Hook)),
                ("sim", placed(table.sim, |_| ResetBacking::Sim)),
            ],
        )?;
        let (mut autonomous, mut explicit) = (true, true);
        let driver: Arc<dyn ResetDriver> = match backing {
            ResetBacking::Gpio(gpio) => self.line(&gpio, &place, mode)?,
            ResetBacking::Sim => Arc::new(SimReset::default()),
            ResetBacking::Hook(hook) => {
                (autonomous, explicit) = (hook.reset.is_some(), hook.assert.is_some());
                let paths = [&hook.assert, &hook.reset];
                let names = paths.iter().filter_map(|path| {
                    let path = self.path(path.as_ref()?);
                    Some(path.display().to_string())
                });
                let names: Vec<_> = names.collect();
                if names.is_empty() {
                    let why = "it names no file: write reset = PATH, assert = PATH or both";
                    return Err(Problem::at(&place, why));
                }
                let sink = |path: &Option<PathBuf>| {
                    let sink = path.as_ref().map(|path| self.sink(path, mode, &place));
                    Ok(sink.transpose()?.flatten())
                };
                Arc::new(HookReset {
                    assert: sink(&hook.assert)?,
                    reset: sink(&hook.reset)?,
                    backing: names.join(" + "),
                })
            }
        };
        Ok(Reset {
            autonomous,
            explicit,
            latency_us: table.latency_us,
            driver,
        })
    }
}
