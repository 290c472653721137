//! `[pinctrl]`: the pin controller.

use std::sync::Arc;

use toml::Spanned;

use super::Builder;
use super::open::{one, placed};
use crate::host::linux::attribute::Mode;
use crate::host::sim::SimPinctrl;
use crate::host::{Members, Pinctrl};
use crate::platform::file;
use crate::platform::{Checked, Problem, Span};

impl Builder<'_> {
    /// Pins are simulated: the kernel keeps the real ones to itself.
    pub(super) fn pinctrl(
        &mut self,
        span: &Span,
        table: file::Pinctrl,
        _mode: Mode,
    ) -> Checked<Pinctrl> {
        one(span, [("sim", placed(table.sim, |_| ()))])?;
        let groups = members("pin", table.groups, &table.pins)?;
        let called: Vec<_> = groups.iter().map(|group| group.name.clone()).collect();
        let functions = members("group", table.functions, &called)?;
        Ok(Pinctrl {
            pins: table.pins,
            groups,
            functions,
            driver: Arc::new(SimPinctrl::default()),
        })
    }
}

/// Groups of what has these names.
fn members(
    what: &str,
    tables: Option<Vec<file::Members>>,
    names: &[String],
) -> Checked<Vec<Members>> {
    let member = |name: &Spanned<String>| {
        let found = names.iter().position(|other| other == name.get_ref());
        let found = found.and_then(|position| u16::try_from(position).ok());
        found.ok_or_else(|| {
            let why = format!("there is no {what} that is called {:?}", name.get_ref());
            Problem::at(&name.span(), why)
        })
    };
    let tables = tables.unwrap_or_default().into_iter().map(|table| {
        Ok(Members {
            members: table.members.iter().map(member).collect::<Checked<_>>()?,
            name: table.name,
        })
    });
    tables.collect()
}
