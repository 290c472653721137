//! What the device knows of a line, and when its interrupt is raised.
//!
//! An interrupt is *enabled* while it has a trigger, and *unmasked* while a buffer is held for it.

use vhost_device_queue::Kept;

use super::wire::{Direction, IrqStatus, Trigger};
use crate::host::{Edge, Watch};

/// A line. A new one is as [`Direction::None`] leaves it.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) direction: Direction,
    /// The level that it has as an output, or will have when it becomes one.
    pub(super) value: bool,
    trigger: Option<Trigger>,
    /// An edge came while the interrupt was masked.
    latched: bool,
    buffer: Option<Kept>,
}

/// An event buffer on its way back.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) kept: Kept,
    pub(super) status: IrqStatus,
}

impl Trigger {
    /// The edges to look for: a level that raises an interrupt begins with one.
    pub(super) fn watch(self) -> Watch {
        match self {
            Self::RisingEdge | Self::HighLevel => Watch::Rising,
            Self::FallingEdge | Self::LowLevel => Watch::Falling,
            Self::BothEdges => Watch::Both,
        }
    }

    /// The level that raises the interrupt, if it is not raised by edges.
    pub(super) fn level(self) -> Option<bool> {
        match self {
            Self::HighLevel => Some(true),
            Self::LowLevel => Some(false),
            Self::RisingEdge | Self::FallingEdge | Self::BothEdges => None,
        }
    }
}

impl Line {
    /// What raises its interrupt, if that is enabled.
    pub(super) fn trigger(&self) -> Option<Trigger> {
        self.trigger
    }

    pub(super) fn enable(&mut self, trigger: Trigger) {
        self.trigger = Some(trigger);
    }

    /// Disables the interrupt. What is latched is gone; a buffer stays for the caller to return.
    pub(super) fn disable(&mut self) {
        self.trigger = None;
        self.latched = false;
    }

    /// An edge has come: returns the buffer that tells of it, or latches it. A level is never
    /// latched: it is looked at when it counts.
    pub(super) fn edge(&mut self, edge: Edge) -> Option<Returned> {
        let trigger = self.trigger?;
        if trigger.level().is_some() || !trigger.watch().wants(edge) {
            return None;
        }
        self.latched = self.buffer.is_none();
        self.take_buffer(IrqStatus::Valid)
    }

    pub(super) fn is_latched(&self) -> bool {
        self.latched
    }

    pub(super) fn unlatch(&mut self) {
        self.latched = false;
    }

    /// The interrupt is enabled and masked.
    pub(super) fn wants_a_buffer(&self) -> bool {
        self.trigger.is_some() && self.buffer.is_none()
    }

    pub(super) fn holds_a_buffer(&self) -> bool {
        self.buffer.is_some()
    }

    pub(super) fn hold(&mut self, buffer: Kept) {
        self.buffer = Some(buffer);
    }

    /// The buffer that is held.
    pub(super) fn buffer(&self) -> Option<&Kept> {
        self.buffer.as_ref()
    }

    /// Masks the interrupt: its buffer goes back with `status`.
    pub(super) fn take_buffer(&mut self, status: IrqStatus) -> Option<Returned> {
        let kept = self.buffer.take()?;
        Some(Returned { kept, status })
    }

    /// The driver took the queue back, and the buffer with it.
    pub(super) fn drop_buffer(&mut self) {
        self.buffer = None;
    }

    /// The buffer of a line that is no longer used.
    pub(super) fn into_buffer(mut self) -> Option<Returned> {
        self.take_buffer(IrqStatus::Invalid)
    }

    /// Whether the host has anything to undo for it.
    pub(super) fn is_used(&self) -> bool {
        self.direction != Direction::None || self.trigger.is_some()
    }
}
