//! `[system]`: the system's power.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::Builder;
use super::open::{one, placed};
use crate::host::linux::attribute::Mode;
use crate::host::linux::hook::HookSystem;
use crate::host::sim::SimSystem;
use crate::host::{Resource, ResourceId, SystemDriver, SystemPower};
use crate::platform::file;
use crate::platform::{Checked, Span};

/// The time that a guest has for shutting down, when the file does not say it.
const TIMEOUT: Duration = Duration::from_secs(30);

enum SystemBacking {
    Hook(PathBuf),
    Sim,
}

impl Builder<'_> {
    /// The one resource that needs no name.
    pub(super) fn system(
        &mut self,
        table: Spanned<file::System>,
    ) -> Checked<Resource<SystemPower>> {
        let (span, table) = (table.span(), table.into_inner());
        let permissions = self.guests.permissions(&table.read, &table.control)?;
        self.resource = Some(ResourceId::System);
        Ok(Resource {
            name: table.name.clone().unwrap_or_else(|| "system".to_owned()),
            kind: self.system_power(&span, table, self.mode(&permissions))?,
            permissions,
        })
    }

    fn system_power(&self, span: &Span, table: file::System, mode: Mode) -> Checked<SystemPower> {
        let timeout = table.timeout_ms.map_or(TIMEOUT, Duration::from_millis);
        let has_any = table.hook.is_some() || table.sim.is_some();
        // Without any, the host may ask guests, and guests may not ask the host.
        if !has_any {
            return Ok(SystemPower {
                timeout,
                driver: None,
            });
        }
        let (place, backing) = one(
            span,
            [
                ("hook", placed(table.hook, SystemBacking::Hook)),
                ("sim", placed(table.sim, |_| SystemBacking::Sim)),
            ],
        )?;
        let driver: Arc<dyn SystemDriver> = match backing {
            SystemBacking::Sim => Arc::new(SimSystem::default()),
            SystemBacking::Hook(path) => Arc::new(HookSystem::new(
                self.sink(&path, mode, &place)?,
                self.path(&path).display().to_string(),
            )),
        };
        Ok(SystemPower {
            timeout,
            driver: Some(driver),
        })
    }
}
