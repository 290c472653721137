//! An agent, as DEN0056 calls a guest: all protocols of one guest together.
//!
//! It hands each command to its protocol, and each change of the platform to the protocol that may
//! have subscribers. It knows neither buffers nor queues.

use std::sync::Arc;
use std::time::Instant;

use vhost_device_backend::{RateLimit, limited};

use super::base::Base;
use super::clock::Clocks;
use super::outbox::Outbox;
use super::performance::Performances;
use super::pinctrl::PinControl;
use super::power::Powers;
use super::powercap::Powercaps;
use super::protocol::{AnyProtocol, Call, Context, Protocol};
use super::reset::Resets;
use super::sensor::Sensors;
use super::system::System;
use super::view::View;
use super::voltage::Voltages;
use super::wire::{Failure, Header, Status};
use crate::host::{Guest, ResourceId};
use crate::hub::{Hub, News};

/// What limits the log lines about a guest. A clone shares the limits.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    pub(super) host: RateLimit,
    pub(super) no_room: RateLimit,
    pub(super) refused: RateLimit,
}

/// What one guest has of the platform.
#[derive(Debug)]
pub(super) struct Agent {
    name: String,
    logs: Logs,
    guest: Guest,
    p2a: bool,
    base: Base,
    powers: Powers,
    system: System,
    performances: Performances,
    clocks: Clocks,
    sensors: Sensors,
    resets: Resets,
    voltages: Voltages,
    powercaps: Powercaps,
    pinctrl: PinControl,
}

impl Agent {
    /// What `guest` has of the platform behind `hub`.
    pub(super) fn new(hub: &Arc<Hub>, guest: Guest, name: String, logs: Logs) -> Self {
        let platform = hub.platform();
        let mut agent = Self {
            name,
            logs,
            guest,
            p2a: false,
            base: Base::default(),
            powers: Powers::new(View::new(&platform.powers, guest)),
            system: System::new(platform.system.as_ref(), guest),
            performances: Performances::new(
                View::new(&platform.performances, guest),
                &platform.performances,
            ),
            clocks: Clocks::new(View::new(&platform.clocks, guest)),
            sensors: Sensors::new(View::new(&platform.sensors, guest), &platform.sensors),
            resets: Resets::new(View::new(&platform.resets, guest)),
            voltages: Voltages::new(View::new(&platform.voltages, guest)),
            powercaps: Powercaps::new(View::new(&platform.powercaps, guest)),
            pinctrl: PinControl::new(platform.pinctrl.as_ref(), guest),
        };
        let others = Base::ID + 1..=u8::MAX;
        agent.base = Base::new(others.filter(|id| agent.protocol(*id).is_some()).collect());
        agent
    }

    /// The protocol with this number, if it has anything for the guest.
    fn protocol(&mut self, id: u8) -> Option<&mut dyn AnyProtocol> {
        let protocol: &mut dyn AnyProtocol = match id {
            Base::ID => &mut self.base,
            Powers::ID => &mut self.powers,
            System::ID => &mut self.system,
            Performances::ID => &mut self.performances,
            Clocks::ID => &mut self.clocks,
            Sensors::ID => &mut self.sensors,
            Resets::ID => &mut self.resets,
            Voltages::ID => &mut self.voltages,
            Powercaps::ID => &mut self.powercaps,
            PinControl::ID => &mut self.pinctrl,
            _ => return None,
        };
        protocol.is_there().then_some(protocol)
    }

    /// Whether the guest has an event queue.
    pub(super) fn set_p2a(&mut self, p2a: bool) {
        self.p2a = p2a;
    }

    fn context<'a>(&self, hub: &'a Hub) -> Context<'a> {
        Context {
            hub,
            guest: self.guest,
            p2a: self.p2a,
        }
    }

    /// Does a command. The results only count if the status is SUCCESS.
    pub(super) fn command(&mut self, hub: &Hub, call: Call<'_, '_>) -> Status {
        let cx = self.context(hub);
        let header = call.header;
        let done = if !header.is_command() {
            Err(Status::ProtocolError.into())
        } else if let Some(protocol) = self.protocol(header.protocol()) {
            protocol.call(cx, call)
        } else {
            Err(Status::NotSupported.into())
        };
        match done {
            Ok(()) => Status::Success,
            Err(failure) => {
                self.log(header, &failure);
                failure.status()
            }
        }
    }

    fn log(&self, header: Header, failure: &Failure) {
        let (protocol, message) = (header.protocol(), header.message());
        match failure {
            Failure::Host(error) => limited!(
                self.logs.host,
                Warn,
                "{}: the host fails at command {message:#x} of protocol {protocol:#x}: {error}",
                self.name
            ),
            Failure::Status(status) => limited!(
                self.logs.refused,
                Debug,
                "{}: command {message:#x} of protocol {protocol:#x}: {status:?}",
                self.name
            ),
        }
    }

    /// Tells the guest of changes that it has subscribed to.
    pub(super) fn tell(&mut self, hub: &Hub, news: News, outbox: &mut Outbox) {
        let cx = self.context(hub);
        if !cx.p2a {
            return;
        }
        for (id, by) in news.changes {
            let told = match id {
                ResourceId::Power(number) => self.powers.changed(cx, number, by, outbox),
                ResourceId::Performance(number) => {
                    self.performances.changed(cx, number, by, outbox)
                }
                ResourceId::Clock(number) => self.clocks.changed(cx, number, by, outbox),
                ResourceId::Sensor(number) => self.sensors.changed(cx, number, outbox),
                ResourceId::Reset(number) => self.resets.changed(cx, number, by, outbox),
                ResourceId::Powercap(number) => self.powercaps.changed(cx, number, by, outbox),
                // Nobody can subscribe to these.
                ResourceId::Voltage(_) | ResourceId::System | ResourceId::Pinctrl => Ok(()),
            };
            if let Err(error) = told {
                let line = format_args!("{}: the host fails at {id:?}: {error}", self.name);
                limited!(self.logs.host, Warn, "{line}");
            }
        }
        if let Some(request) = news.system {
            self.system.request(hub, request, outbox);
        }
    }

    /// When the agent has something to do without a command, if ever.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = [self.sensors.due(), self.powercaps.due()];
        due.into_iter().flatten().min()
    }

    /// Does one thing that is due. False if nothing is.
    pub(super) fn work(&mut self, hub: &Hub, now: Instant, outbox: &mut Outbox) -> bool {
        let cx = self.context(hub);
        // What has waited longest goes first, so that neither keeps the other from its turn.
        let sensors_first = match (self.sensors.due(), self.powercaps.due()) {
            (Some(sensor), Some(powercap)) => sensor <= powercap,
            (_, powercap) => powercap.is_none(),
        };
        let done = if sensors_first {
            self.sensors.work(cx, now, outbox)
        } else {
            self.powercaps.work(cx, now, outbox)
        };
        done.unwrap_or_else(|error| {
            let line = format_args!("{}: the host fails at a reading: {error}", self.name);
            limited!(self.logs.host, Warn, "{line}");
            true
        })
    }

    /// The guest begins anew: its subscriptions and its wishes about the platform are gone.
    pub(super) fn reset(&mut self, hub: &Arc<Hub>) {
        hub.forget(self.guest);
        *self = Self::new(hub, self.guest, self.name.clone(), self.logs.clone());
    }
}
