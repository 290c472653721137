//! What is wrong with a platform, before any guest sees it.

use std::collections::BTreeSet;

use super::{
    Clock, Intervals, Levels, MAX_NAME, MAX_RESOURCES, Members, Performance, Pinctrl, Platform,
    Power, PowerState, Powercap, Quantity, Rates, Reset, Resource, Sensor, Shape, Voltage,
};

/// A resource that cannot be as it is described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {protocol} {name:?}: {why}")]
pub struct Invalid {
    /// What it is: `clock`, for example.
    pub protocol: &'static str,
    /// Its name.
    pub name: String,
    /// Which of its properties is wrong, as a platform file calls it; empty when it is none.
    pub key: &'static str,
    /// What is wrong.
    pub why: String,
}

/// A property, and what is wrong with it.
type Fault = (&'static str, String);

type Checked = Result<(), Fault>;

/// The property `key` has to be so.
fn expect(key: &'static str, holds: bool, why: &str) -> Checked {
    if holds {
        Ok(())
    } else {
        Err((key, why.to_owned()))
    }
}

/// Whether a name can be told.
fn check_name(name: &str) -> Checked {
    expect("name", !name.is_empty(), "it needs a name")?;
    let why = format!("a name has at most {MAX_NAME} characters");
    expect("name", name.len() <= MAX_NAME, &why)?;
    let ascii = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    expect("name", ascii, "a name has printable ASCII characters only")?;
    expect(
        "name",
        name.trim() == name,
        "a name does not begin or end with a blank",
    )
}

fn is_ascending<T: PartialOrd>(list: &[T]) -> bool {
    list.is_sorted_by(|one, other| one < other)
}

fn check_all<T>(
    protocol: &'static str,
    resources: &[Resource<T>],
    check: impl Fn(&T) -> Checked,
) -> Result<(), Invalid> {
    let mut names = BTreeSet::new();
    for (number, resource) in resources.iter().enumerate() {
        let mut checked = check_name(&resource.name);
        if number >= MAX_RESOURCES {
            checked = Err((
                "name",
                format!("there are more than {MAX_RESOURCES} of them"),
            ));
        } else if !names.insert(&*resource.name) {
            checked = Err(("name", "another one has the same name".to_owned()));
        }
        let checked = checked.and_then(|()| check(&resource.kind));
        checked.map_err(|(key, why)| Invalid {
            protocol,
            name: resource.name.clone(),
            key,
            why,
        })?;
    }
    Ok(())
}

impl Power {
    fn check(&self) -> Checked {
        let both = [PowerState::ON, PowerState::OFF];
        let both = both.iter().all(|state| self.states.contains(state));
        expect("", both, "its states have to have on and off among them")?;
        let reserved = self.states.iter().all(|state| state.0 & !0x4fff_ffff == 0);
        expect(
            "",
            reserved,
            "a state has bits 28, 29 or 31, which mean nothing",
        )
    }
}

impl Performance {
    fn check(&self) -> Checked {
        expect("levels", !self.levels.is_empty(), "it needs a level")?;
        let most = Self::MAX_LEVELS;
        let why = format!("it has more than {most} levels");
        expect("levels", self.levels.len() <= most, &why)?;
        let levels: Vec<_> = self.levels.iter().map(|level| level.level).collect();
        expect("levels", !levels.contains(&0), "a level is not 0")?;
        expect(
            "levels",
            is_ascending(&levels),
            "its levels have to be in order, each once, the slowest first",
        )?;
        expect(
            "sustained",
            self.sustained < levels.len(),
            "its sustained level is none of its levels",
        )?;
        let frequencies = self
            .levels
            .iter()
            .map(|level| level.indicative_frequency_khz);
        let unknown = frequencies.clone().any(|frequency| frequency == 0);
        expect(
            "level-indexing",
            !self.level_indexing || !unknown,
            "with level indexing, each level needs a frequency-khz",
        )?;
        let distinct: BTreeSet<_> = frequencies.collect();
        expect(
            "level-indexing",
            !self.level_indexing || distinct.len() == levels.len(),
            "with level indexing, two levels cannot have the same frequency-khz",
        )
    }
}

impl Clock {
    fn check(&self, clocks: usize) -> Checked {
        match &self.rates {
            Rates::Discrete(rates) => {
                expect("rates", !rates.is_empty(), "it needs a rate")?;
                let why = format!("it has more than {} rates", Rates::MAX);
                expect("rates", rates.len() <= Rates::MAX, &why)?;
                expect(
                    "rates",
                    is_ascending(rates),
                    "its rates have to be in order, each once, the lowest first",
                )?;
            }
            Rates::Range { min, max, step } => {
                expect("rates", min <= max, "its lowest rate is above its highest")?;
                expect("rates", *step != 0, "the step between its rates is 0")?;
            }
        }
        let there = self.parents.iter().all(|parent| *parent < clocks);
        expect("parents", there, "a parent is not there")?;
        let distinct: BTreeSet<_> = self.parents.iter().collect();
        expect(
            "parents",
            distinct.len() == self.parents.len(),
            "it has a parent twice",
        )
    }
}

impl Quantity {
    fn check(&self) -> Checked {
        let exponents = -16..=15;
        expect(
            "scale",
            exponents.contains(&self.scale),
            "a scale is from -16 to 15",
        )?;
        if let Some(resolution) = self.resolution {
            let fits = exponents.contains(&resolution.exponent) && resolution.mantissa < 1 << 27;
            expect(
                "",
                fits,
                "a resolution is below 2^27, times ten to the -16 up to 15",
            )?;
        }
        let ordered = self.range.is_none_or(|(min, max)| min <= max);
        expect(
            "range",
            ordered,
            "the least number that it reads is above the greatest",
        )
    }
}

impl Sensor {
    fn check(&self) -> Checked {
        match &self.shape {
            Shape::Scalar(quantity) => quantity.check()?,
            Shape::Axes(axes) => {
                expect("axes", !axes.is_empty(), "it needs an axis")?;
                let why = format!("it has more than {} axes", Shape::MAX_AXES);
                expect("axes", axes.len() <= Shape::MAX_AXES, &why)?;
                expect(
                    "trip-points",
                    self.trip_points == 0,
                    "with axes it has no trip points",
                )?;
                for axis in axes {
                    check_name(&axis.name).map_err(|(_, why)| ("axes", why))?;
                    axis.quantity.check()?;
                }
            }
        }
        let why = "an interval is at least a millisecond";
        match &self.intervals {
            Intervals::Discrete(list) => {
                let shortest = list.first().is_none_or(|first| *first >= Intervals::MIN);
                expect("intervals-ms", shortest, why)?;
                let count = format!("it has more than {} intervals", Intervals::MAX);
                expect("intervals-ms", list.len() <= Intervals::MAX, &count)?;
                expect(
                    "intervals-ms",
                    is_ascending(list),
                    "its intervals have to be in order, each once, the shortest first",
                )
            }
            Intervals::Range { min, max, step } => {
                expect("intervals-ms", *min >= Intervals::MIN, why)?;
                expect(
                    "intervals-ms",
                    min <= max,
                    "its shortest interval is above its longest",
                )?;
                expect(
                    "intervals-ms",
                    !step.is_zero(),
                    "the step between its intervals is 0",
                )
            }
        }
    }
}

impl Reset {
    fn check(&self) -> Checked {
        expect(
            "",
            self.autonomous || self.explicit,
            "it cannot be reset in any way",
        )
    }
}

impl Voltage {
    fn check(&self) -> Checked {
        match &self.levels {
            Levels::Discrete(levels) => {
                expect("microvolts", !levels.is_empty(), "it needs a voltage")?;
                let why = format!("it has more than {} voltages", Levels::MAX);
                expect("microvolts", levels.len() <= Levels::MAX, &why)?;
                expect(
                    "microvolts",
                    is_ascending(levels),
                    "its voltages have to be in order, each once, the lowest first",
                )
            }
            Levels::Range { min, max, step } => {
                expect(
                    "microvolts",
                    min <= max,
                    "its lowest voltage is above its highest",
                )?;
                expect(
                    "microvolts",
                    *step > 0,
                    "the step between its voltages is not above 0",
                )
            }
        }
    }
}

impl Powercap {
    fn check(&self, number: usize, domains: &[Resource<Self>]) -> Checked {
        expect("cap", self.min_cap > 0, "its lowest cap is 0")?;
        expect(
            "cap",
            self.min_cap <= self.max_cap,
            "its lowest cap is above its highest",
        )?;
        // The hub's word for no cap.
        let bounded = self.max_cap < u32::MAX;
        expect("cap", bounded, "its highest cap is above 4294967294")?;
        let one = self.min_cap == self.max_cap;
        expect(
            "cap",
            one || self.cap_step > 0,
            "the step between its caps is 0",
        )?;
        expect(
            "interval-us",
            self.min_pai_us > 0,
            "its shortest averaging interval is 0",
        )?;
        expect(
            "interval-us",
            self.min_pai_us <= self.max_pai_us,
            "its shortest averaging interval is above its longest",
        )?;
        let one = self.min_pai_us == self.max_pai_us;
        let why = "the step between its averaging intervals is 0";
        expect("interval-us", one || self.pai_step_us > 0, why)?;
        // As many steps upwards as there are domains, and it must have come to one without parent.
        let mut above = Some(number);
        for _ in 0..=domains.len() {
            let Some(domain) = above else {
                return Ok(());
            };
            let domain = domains
                .get(domain)
                .ok_or(("parent", "its parent is not there".to_owned()))?;
            above = domain.kind.parent;
        }
        Err(("parent", "it is a part of itself".to_owned()))
    }
}

/// Looks at groups or functions, whose members are the first `count` of something.
fn check_members(what: &'static str, sets: &[Members], count: usize) -> Checked {
    let why = format!("it has more than {MAX_RESOURCES} {what}");
    expect(what, sets.len() <= MAX_RESOURCES, &why)?;
    let mut names = BTreeSet::new();
    for Members { name, members } in sets {
        let of = |why: &str| format!("its {what} {name:?}: {why}");
        check_name(name).map_err(|(_, why)| (what, of(&why)))?;
        expect(
            what,
            names.insert(name),
            &of("another one has the same name"),
        )?;
        expect(what, !members.is_empty(), &of("nothing is in it"))?;
        let there = members.iter().all(|member| usize::from(*member) < count);
        expect(what, there, &of("what is in it is not there"))?;
        let distinct: BTreeSet<_> = members.iter().collect();
        expect(
            what,
            distinct.len() == members.len(),
            &of("something is in it twice"),
        )?;
    }
    Ok(())
}

impl Pinctrl {
    fn check(&self) -> Checked {
        expect("pins", !self.pins.is_empty(), "it needs a pin")?;
        let why = format!("it has more than {MAX_RESOURCES} pins");
        expect("pins", self.pins.len() <= MAX_RESOURCES, &why)?;
        self.pins
            .iter()
            .try_for_each(|name| check_name(name).map_err(|(_, why)| ("pins", why)))?;
        check_members("groups", &self.groups, self.pins.len())?;
        check_members("functions", &self.functions, self.groups.len())
    }
}

impl Platform {
    /// Looks whether every resource is as its description demands.
    ///
    /// # Errors
    /// The first that is not, and why.
    pub fn check(&self) -> Result<(), Invalid> {
        for (what, name) in [("vendor", &self.vendor), ("sub-vendor", &self.sub_vendor)] {
            let ascii = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            if name.len() > 15 || !ascii {
                return Err(Invalid {
                    protocol: what,
                    name: name.clone(),
                    key: "",
                    why: "at most 15 characters of printable ASCII".to_owned(),
                });
            }
        }
        check_all("power domain", &self.powers, Power::check)?;
        check_all("performance domain", &self.performances, Performance::check)?;
        let clocks = self.clocks.len();
        check_all("clock", &self.clocks, |clock| clock.check(clocks))?;
        check_all("sensor", &self.sensors, Sensor::check)?;
        check_all("reset domain", &self.resets, Reset::check)?;
        check_all("voltage domain", &self.voltages, Voltage::check)?;
        check_all("power capping domain", &self.powercaps, |_| Ok(()))?;
        check_all("pin controller", self.pinctrl.as_slice(), Pinctrl::check)?;
        for (number, resource) in self.powercaps.iter().enumerate() {
            let checked = resource.kind.check(number, &self.powercaps);
            checked.map_err(|(key, why)| Invalid {
                protocol: "power capping domain",
                name: resource.name.clone(),
                key,
                why,
            })?;
        }
        Ok(())
    }

    /// Adds what another platform has, behind what is there. What it calls itself counts where this
    /// one says nothing.
    pub fn merge(&mut self, other: Self) {
        for (mine, others) in [
            (&mut self.vendor, other.vendor),
            (&mut self.sub_vendor, other.sub_vendor),
        ] {
            if mine.is_empty() {
                *mine = others;
            }
        }
        let clocks = self.clocks.len();
        let powercaps = self.powercaps.len();
        self.powers.extend(other.powers);
        self.system = self.system.take().or(other.system);
        self.pinctrl = self.pinctrl.take().or(other.pinctrl);
        self.performances.extend(other.performances);
        self.clocks
            .extend(other.clocks.into_iter().map(|mut clock| {
                clock
                    .kind
                    .parents
                    .iter_mut()
                    .for_each(|parent| *parent += clocks);
                clock
            }));
        self.sensors.extend(other.sensors);
        self.resets.extend(other.resets);
        self.voltages.extend(other.voltages);
        self.powercaps
            .extend(other.powercaps.into_iter().map(|mut powercap| {
                powercap.kind.parent = powercap.kind.parent.map(|parent| parent + powercaps);
                powercap
            }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sim;

    /// What is wrong with the simulated platform after a change of it.
    fn complaint(change: impl FnOnce(&mut Platform)) -> String {
        let mut platform = sim::platform();
        change(&mut platform);
        platform.check().unwrap_err().to_string()
    }

    #[test]
    fn test_what_is_wrong_is_said() {
        assert_eq!(sim::platform().check(), Ok(()));
        type Case = (&'static str, fn(&mut Platform));
        let cases: [Case; 15] = [
            ("15 characters", |it| {
                it.vendor = "a name too long".repeat(2)
            }),
            ("needs a name", |it| it.clocks[0].name.clear()),
            ("63 characters", |it| it.clocks[0].name = "x".repeat(64)),
            ("ASCII", |it| it.sensors[0].name = "Fühler".to_owned()),
            ("the same name", |it| {
                it.resets[1].name = it.resets[0].name.clone()
            }),
            ("a parent is not there", |it| {
                it.clocks[0].kind.parents = vec![99]
            }),
            ("in order", |it| {
                it.clocks[0].kind.rates = Rates::Discrete(vec![2, 1])
            }),
            ("on and off", |it| {
                it.powers[0].kind.states = vec![PowerState::ON]
            }),
            ("no trip points", |it| {
                let axes =
                    |sensor: &&mut Resource<Sensor>| matches!(sensor.kind.shape, Shape::Axes(_));
                it.sensors.iter_mut().find(axes).unwrap().kind.trip_points = 1;
            }),
            ("part of itself", |it| it.powercaps[0].kind.parent = Some(0)),
            ("is not there", |it| {
                it.pinctrl.as_mut().unwrap().kind.groups[0].members[0] = 99;
            }),
            ("nothing is in it", |it| {
                it.pinctrl.as_mut().unwrap().kind.functions[0]
                    .members
                    .clear();
            }),
            ("lowest cap is 0", |it| it.powercaps[0].kind.min_cap = 0),
            ("above 4294967294", |it| {
                it.powercaps[0].kind.max_cap = u32::MAX
            }),
            ("in any way", |it| {
                it.resets[0].kind.autonomous = false;
                it.resets[0].kind.explicit = false;
            }),
        ];
        for (why, change) in cases {
            let complaint = complaint(change);
            assert!(complaint.contains(why), "{why}: {complaint}");
        }
    }

    #[test]
    fn test_there_are_not_too_many() {
        let complaint = complaint(|platform| {
            let reset = platform.resets[0].clone();
            let more = (0..MAX_RESOURCES).map(|number| Resource {
                name: format!("r{number}"),
                ..reset.clone()
            });
            platform.resets.extend(more);
        });
        assert!(complaint.contains("more than 1024"), "{complaint}");
    }

    #[test]
    fn test_merged_platforms_keep_their_references() {
        let mut platform = sim::platform();
        let (clocks, powercaps) = (platform.clocks.len(), platform.powercaps.len());
        platform.merge(sim::platform());
        let parents = |clock: usize| platform.clocks[clock].kind.parents.clone();
        let clock = (0..clocks)
            .find(|clock| !parents(*clock).is_empty())
            .unwrap();
        let moved: Vec<_> = parents(clock)
            .iter()
            .map(|parent| parent + clocks)
            .collect();
        assert_eq!(parents(clock + clocks), moved);
        let parent = |domain: usize| platform.powercaps[domain].kind.parent;
        let domain = (0..powercaps)
            .find(|domain| parent(*domain).is_some())
            .unwrap();
        assert_eq!(
            parent(domain + powercaps),
            parent(domain).map(|parent| parent + powercaps)
        );
    }
}
