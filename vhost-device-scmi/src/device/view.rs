//! Which resources of a protocol a guest sees, by its own numbers, and what the platform told it
//! last of each.

use super::outbox::{Outbox, Subject};
use super::wire::{Arguments, Done, Results, Status, is_subscription};
use crate::host::{self, Access, Guest, Resource};

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
        if self.may_control() {
            Ok(self)
        } else {
            Err(Status::Denied)
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

/// What the guest heard last of each of its resources, where it has subscribed.
#[derive(Debug)]
pub(super) struct Told<T>(Vec<Option<T>>);

impl<T: Copy + PartialEq> Told<T> {
    /// The guest has subscribed to nothing.
    pub(super) fn new(view: &View) -> Self {
        Self(vec![None; view.len()])
    }

    /// Whether it has subscribed to a resource.
    pub(super) fn is_wanted(&self, index: usize) -> bool {
        self.0.get(index).is_some_and(Option::is_some)
    }

    /// Does what the second word of a `*_NOTIFY` says. A guest that subscribes knows the present
    /// value, and hears of the next one that is different.
    pub(super) fn subscribe(
        &mut self,
        subject: Subject,
        enable: u32,
        now: impl FnOnce() -> host::Result<T>,
        outbox: &mut Outbox,
    ) -> Done {
        let told = if is_subscription(enable)? {
            Some(now()?)
        } else {
            outbox.withdraw(subject);
            None
        };
        let index = usize::try_from(subject.resource).map_err(|_| Status::NotFound)?;
        *self.0.get_mut(index).ok_or(Status::NotFound)? = told;
        Ok(())
    }

    /// The present value, if it is news to a guest that has subscribed.
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
