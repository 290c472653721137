//! An agent: what one guest sees of the platform, and what it has asked to be told.
//!
//! It takes commands and gives answers; buffers and queues are not its business. What all
//! protocols have in common is here, and what each has of its own is in a file of its own.

use std::sync::Arc;
use std::time::Instant;

use vhost_device_backend::{RateLimit, limited};

use super::base::{self, Base};
use super::clock::Clocks;
use super::outbox::{Outbox, Subject};
use super::performance::Performances;
use super::pinctrl::PinControl;
use super::power::Powers;
use super::powercap::Powercaps;
use super::reset::Resets;
use super::sensor::Sensors;
use super::system::System;
use super::voltage::Voltages;
use super::wire::{AGENT, Arguments, Done, Failure, Header, PLATFORM, Results, Status};
use crate::host::{self, Access, Guest, Resource, ResourceId};
use crate::hub::{Hub, News};

/// `PROTOCOL_VERSION`, of every protocol.
const PROTOCOL_VERSION: u8 = 0x0;
/// `PROTOCOL_ATTRIBUTES`.
const PROTOCOL_ATTRIBUTES: u8 = 0x1;
/// `PROTOCOL_MESSAGE_ATTRIBUTES`.
const PROTOCOL_MESSAGE_ATTRIBUTES: u8 = 0x2;
/// `NEGOTIATE_PROTOCOL_VERSION`.
const NEGOTIATE_PROTOCOL_VERSION: u8 = 0x10;

/// What a protocol needs to know besides its own state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) hub: &'a Hub,
    pub(super) guest: Guest,
    /// `VIRTIO_SCMI_F_P2A_CHANNELS` was negotiated.
    pub(super) p2a: bool,
}

impl Context<'_> {
    /// For what only works with an event queue (S-7).
    pub(super) fn needs_p2a(&self) -> Result<(), Status> {
        match self.p2a {
            true => Ok(()),
            false => Err(Status::NotSupported),
        }
    }

    /// Who did something, as the guest is told it.
    pub(super) fn agent(&self, by: Option<Guest>) -> u32 {
        match by == Some(self.guest) {
            true => AGENT,
            false => PLATFORM,
        }
    }
}

/// A command, and where what comes of it goes.
#[derive(Debug)]
pub(super) struct Call<'a, 'b> {
    pub(super) header: Header,
    pub(super) arguments: Arguments<'a>,
    pub(super) results: &'a mut Results<'b>,
    /// For what is told later.
    pub(super) outbox: &'a mut Outbox,
}

/// A protocol with the resources that one guest sees.
pub(super) trait Protocol {
    /// Its number.
    const ID: u8;
    /// Its version: the major one in the upper 16 bits.
    const VERSION: u32;
    /// The last message that DEN0056 has of it. There are none behind, and what is there before
    /// and not here is not supported.
    const LAST: u8;

    /// Whether there is anything in it for the guest: else it is not there.
    fn is_there(&self) -> bool;

    /// Whether it has a command. Those that every protocol has are not asked for.
    fn has(&self, cx: Context<'_>, message: u8) -> bool;

    /// What `PROTOCOL_MESSAGE_ATTRIBUTES` says of a command that it [has](Protocol::has).
    fn message_attributes(&self, message: u8) -> u32 {
        let _ = message;
        0
    }

    /// The results of `PROTOCOL_ATTRIBUTES`.
    fn attributes(&self, cx: Context<'_>, results: &mut Results<'_>) -> Done;

    /// Does a command that it [has](Protocol::has).
    fn command(&mut self, cx: Context<'_>, call: Call<'_, '_>) -> Done;
}

/// The resources of a protocol that a guest sees, in its order.
#[derive(Debug)]
pub(super) struct View(Vec<Seen>);

/// A resource that a guest sees.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Its number on the platform.
    number: usize,
    access: Access,
}

/// A resource that a command names.
#[derive(Debug)]
pub(super) struct Found<'a, T> {
    /// The guest's number, as a position.
    pub(super) index: usize,
    /// The platform's number.
    pub(super) number: usize,
    pub(super) name: &'a str,
    pub(super) kind: &'a T,
    pub(super) access: Access,
}

impl<T> Found<'_, T> {
    pub(super) fn may_control(&self) -> bool {
        self.access == Access::Control
    }

    /// For commands that change something.
    pub(super) fn controlled(self) -> Result<Self, Status> {
        match self.may_control() {
            true => Ok(self),
            false => Err(Status::Denied),
        }
    }

    /// The guest's number.
    pub(super) fn id(&self) -> u32 {
        // Fits: there are at most `MAX_RESOURCES`.
        self.index as u32
    }
}

impl View {
    pub(super) fn new<T>(resources: &[Resource<T>], guest: Guest) -> Self {
        let seen = resources.iter().enumerate().map(|(number, resource)| Seen {
            number,
            access: resource.permissions.of(guest),
        });
        Self(seen.filter(|seen| seen.access >= Access::Read).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many there are, for a field of 16 bits.
    pub(super) fn count(&self) -> u32 {
        // Fits: there are at most `MAX_RESOURCES`.
        self.0.len() as u32
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The resource that the guest calls `id`.
    pub(super) fn find<'a, T>(
        &self,
        resources: &'a [Resource<T>],
        id: u32,
    ) -> Result<Found<'a, T>, Status> {
        let index = usize::try_from(id).map_err(|_| Status::NotFound)?;
        self.at(resources, index).ok_or(Status::NotFound)
    }

    /// The resource at a position.
    pub(super) fn at<'a, T>(
        &self,
        resources: &'a [Resource<T>],
        index: usize,
    ) -> Option<Found<'a, T>> {
        let seen = self.0.get(index)?;
        let resource = resources.get(seen.number)?;
        Some(Found {
            index,
            number: seen.number,
            name: &resource.name,
            kind: &resource.kind,
            access: seen.access,
        })
    }

    /// The platform's resource `number`, if the guest sees it.
    pub(super) fn by_number<'a, T>(
        &self,
        resources: &'a [Resource<T>],
        number: usize,
    ) -> Option<Found<'a, T>> {
        self.at(resources, self.position(number)?)
    }

    /// A `*_NAME_GET`.
    pub(super) fn tell_name<T>(
        &self,
        resources: &[Resource<T>],
        arguments: Arguments<'_>,
        results: &mut Results<'_>,
    ) -> Done {
        let [id] = arguments.words()?;
        let found = self.find(resources, id)?;
        results.word(0)?;
        results.long_name(found.name)?;
        Ok(())
    }

    /// What the guest calls the platform's resource `number`.
    pub(super) fn position(&self, number: usize) -> Option<usize> {
        // In the order of the platform.
        self.0
            .binary_search_by_key(&number, |seen| seen.number)
            .ok()
    }
}

/// What a guest was told last of each of its resources, where it wants to be told.
#[derive(Debug)]
pub(super) struct Told<T>(Vec<Option<T>>);

impl<T: Copy + PartialEq> Told<T> {
    /// The guest wants to be told nothing.
    pub(super) fn new(view: &View) -> Self {
        Self(vec![None; view.len()])
    }

    /// Whether it wants to be told of a resource.
    pub(super) fn is_wanted(&self, index: usize) -> bool {
        self.0.get(index).is_some_and(Option::is_some)
    }

    /// Does what a `*_NOTIFY` says in the word that enables: the guest knows what is so now, and
    /// is told when that is not so any more.
    pub(super) fn subscribe(
        &mut self,
        subject: Subject,
        enable: u32,
        now: impl FnOnce() -> host::Result<T>,
        outbox: &mut Outbox,
    ) -> Done {
        let told = match is_subscription(enable)? {
            true => Some(now()?),
            false => None,
        };
        if told.is_none() {
            outbox.withdraw(subject);
        }
        let index = usize::try_from(subject.resource).map_err(|_| Status::NotFound)?;
        *self.0.get_mut(index).ok_or(Status::NotFound)? = told;
        Ok(())
    }

    /// What is so now, if that is news to a guest that wants to know it.
    pub(super) fn news(
        &mut self,
        index: usize,
        now: impl FnOnce() -> host::Result<T>,
    ) -> host::Result<Option<T>> {
        let Some(Some(told)) = self.0.get_mut(index) else {
            return Ok(None);
        };
        let now = now()?;
        let news = std::mem::replace(told, now) != now;
        Ok(news.then_some(now))
    }
}

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

/// Calls a protocol of an agent by its number.
macro_rules! with_protocol {
    ($agent:expr, $id:expr, $protocol:ident => $call:expr) => {{
        let agent = $agent;
        match $id {
            Base::ID => with_protocol!(@ agent.base, $protocol, $call),
            Powers::ID => with_protocol!(@ agent.powers, $protocol, $call),
            System::ID => with_protocol!(@ agent.system, $protocol, $call),
            Performances::ID => with_protocol!(@ agent.performances, $protocol, $call),
            Clocks::ID => with_protocol!(@ agent.clocks, $protocol, $call),
            Sensors::ID => with_protocol!(@ agent.sensors, $protocol, $call),
            Resets::ID => with_protocol!(@ agent.resets, $protocol, $call),
            Voltages::ID => with_protocol!(@ agent.voltages, $protocol, $call),
            Powercaps::ID => with_protocol!(@ agent.powercaps, $protocol, $call),
            PinControl::ID => with_protocol!(@ agent.pinctrl, $protocol, $call),
            _ => Err(Status::NotSupported.into()),
        }
    }};
    (@ $field:expr, $protocol:ident, $call:expr) => {{
        let $protocol = &mut $field;
        match $protocol.is_there() {
            true => $call,
            false => Err(Status::NotSupported.into()),
        }
    }};
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
        agent.base = Base::new(base::Protocols(
            [
                (Powers::ID, agent.powers.is_there()),
                (System::ID, agent.system.is_there()),
                (Performances::ID, agent.performances.is_there()),
                (Clocks::ID, agent.clocks.is_there()),
                (Sensors::ID, agent.sensors.is_there()),
                (Resets::ID, agent.resets.is_there()),
                (Voltages::ID, agent.voltages.is_there()),
                (Powercaps::ID, agent.powercaps.is_there()),
                (PinControl::ID, agent.pinctrl.is_there()),
            ]
            .into_iter()
            .filter_map(|(id, there)| there.then_some(id))
            .collect(),
        ));
        agent
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

    /// Does a command. With another status than SUCCESS, the results do not count.
    pub(super) fn command(&mut self, hub: &Hub, call: Call<'_, '_>) -> Status {
        let cx = self.context(hub);
        let header = call.header;
        let done = match header.is_command() {
            true => with_protocol!(&mut *self, header.protocol(), protocol => {
                dispatch(protocol, cx, call)
            }),
            false => Err(Status::ProtocolError.into()),
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

    /// Tells the guest of what has changed, as far as it wants to know.
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
                // Nothing is told of them.
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

    /// When there is something to do without a command, if ever.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = [self.sensors.due(), self.powercaps.due()];
        due.into_iter().flatten().min()
    }

    /// Does one thing that is due. False when there is none.
    pub(super) fn work(&mut self, hub: &Hub, now: Instant, outbox: &mut Outbox) -> bool {
        let cx = self.context(hub);
        // What has waited longest: neither keeps the other from its turn.
        let sensors_first = match (self.sensors.due(), self.powercaps.due()) {
            (Some(sensor), Some(powercap)) => sensor <= powercap,
            (_, powercap) => powercap.is_none(),
        };
        let done = match sensors_first {
            true => self.sensors.work(cx, now, outbox),
            false => self.powercaps.work(cx, now, outbox),
        };
        done.unwrap_or_else(|error| {
            let line = format_args!("{}: the host fails at a reading: {error}", self.name);
            limited!(self.logs.host, Warn, "{line}");
            true
        })
    }

    /// The guest begins anew: it wants to be told nothing, and what it wanted of the platform it
    /// does not want any more.
    pub(super) fn reset(&mut self, hub: &Arc<Hub>) {
        hub.forget(self.guest);
        *self = Self::new(hub, self.guest, self.name.clone(), self.logs.clone());
    }
}

fn dispatch<P: Protocol>(protocol: &mut P, cx: Context<'_>, call: Call<'_, '_>) -> Done {
    match call.header.message() {
        PROTOCOL_VERSION => {
            call.arguments.none()?;
            call.results.word(P::VERSION)?;
        }
        PROTOCOL_ATTRIBUTES => {
            call.arguments.none()?;
            protocol.attributes(cx, call.results)?;
        }
        PROTOCOL_MESSAGE_ATTRIBUTES => {
            let [message] = call.arguments.words()?;
            let attributes = match u8::try_from(message) {
                Ok(
                    PROTOCOL_VERSION
                    | PROTOCOL_ATTRIBUTES
                    | PROTOCOL_MESSAGE_ATTRIBUTES
                    | NEGOTIATE_PROTOCOL_VERSION,
                ) => 0,
                Ok(message) if protocol.has(cx, message) => protocol.message_attributes(message),
                _ => return Err(Status::NotFound.into()),
            };
            call.results.word(attributes)?;
        }
        NEGOTIATE_PROTOCOL_VERSION => {
            let [version] = call.arguments.words()?;
            // Minor versions differ in what an agent may do without.
            if version > P::VERSION || version >> 16 != P::VERSION >> 16 {
                return Err(Status::NotSupported.into());
            }
        }
        message if protocol.has(cx, message) => {
            return protocol.command(cx, call);
        }
        message if message <= P::LAST => return Err(Status::NotSupported.into()),
        _ => return Err(Status::NotFound.into()),
    }
    Ok(())
}

/// Whether a command that subscribes or unsubscribes does the one or the other.
pub(super) fn is_subscription(word: u32) -> Result<bool, Status> {
    match word {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Status::InvalidParameters),
    }
}
