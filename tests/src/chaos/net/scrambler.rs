//! A bad cable: the frames of a link pass through this program, which changes bits in some of them.
//!
//! The link's end is taken from the bridge and joined to a tap device; a second one takes its place at the
//! bridge, and two tasks carry frames from one to the other. Half of the damaged frames have one bit
//! flipped, which the checksums of TCP and UDP find. In the others two bits of the payload change places so
//! that the checksum still holds: those reach whoever authenticates the bytes.
//!
//! Frames of the HTTP API pass unharmed: nothing in them would tell a client that they are wrong.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use tokio::{io::unix::AsyncFd, task::JoinHandle};

use super::{HUB, ip};
use crate::chaos::dice::Dice;

const DEVICE: &str = "/dev/net/tun";
/// `_IOW('T', 202, int)`: what the opened device is from now on.
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
/// `IFF_TAP | IFF_NO_PI`: whole Ethernet frames, and nothing before them.
const WHOLE_FRAMES: u16 = 0x0002 | 0x1000;
/// `sizeof(struct ifreq)`, and where its flags are, behind the name.
const IFREQ: usize = 40;
const FLAGS: usize = 16;
/// More than any frame here has.
const FRAME: usize = 4096;

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Why there can be no such cable here.
pub fn obstacle() -> Option<String> {
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    opened.err().map(|error| format!("{DEVICE}: {error}"))
}

/// What a bad cable does.
#[derive(Clone, Copy)]
pub struct Damage {
    /// One of so many frames is damaged.
    pub one_of: u64,
    /// What is drawn from.
    pub seed: u64,
    /// The port of the HTTP API.
    pub spared: u16,
}

/// See the module. It carries frames as long as it exists.
pub struct Scrambler {
    link: String,
    tasks: Vec<JoinHandle<()>>,
    damaged: Arc<AtomicU64>,
}

impl Scrambler {
    /// Puts itself between a link, whose number makes names, and the bridge.
    pub fn splice(link: &str, number: u16, damage: Damage) -> Result<Self> {
        let (near, far, line) = (
            format!("near{number}"),
            format!("far{number}"),
            line(number),
        );
        let near_end = Arc::new(tap(&near)?);
        let far_end = Arc::new(tap(&far)?);
        ip(&format!("link add {line} type bridge"))?;
        ip(&format!("link set {line} up"))?;
        ip(&format!("link set {near} master {line} up"))?;
        ip(&format!("link set {far} master {HUB} up"))?;
        ip(&format!("link set {link} master {line}"))?;
        let damaged = Arc::new(AtomicU64::new(0));
        let ways = [
            (Arc::clone(&near_end), Arc::clone(&far_end)),
            (far_end, near_end),
        ];
        let ways = ways.into_iter().zip(0..);
        let tasks = ways.map(|((from, to), stream)| {
            let dice = Dice::new(damage.seed, stream);
            tokio::spawn(carry(from, to, damage, dice, Arc::clone(&damaged)))
        });
        Ok(Self {
            link: link.to_owned(),
            tasks: tasks.collect(),
            damaged,
        })
    }

    /// Puts the link back to the bridge; how many frames were damaged.
    pub async fn remove(mut self, number: u16) -> Result<u64> {
        ip(&format!("link set {} master {HUB}", self.link))?;
        ip(&format!("link del {}", line(number)))?;
        // The taps go with their tasks, and the next cable needs their names.
        for task in mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
        Ok(self.damaged.load(Ordering::Relaxed))
    }
}

impl Drop for Scrambler {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn line(number: u16) -> String {
    format!("line{number}")
}

/// A device whose frames this program reads and writes.
fn tap(name: &str) -> Result<AsyncFd<File>> {
    let file = OpenOptions::new().read(true).write(true).open(DEVICE);
    let file = file.with_context(|| format!("cannot open {DEVICE}"))?;
    let mut request = [0; IFREQ];
    let (head, tail) = request.split_at_mut(FLAGS);
    head.get_mut(..name.len())
        .context("the name of a device is short")?
        .copy_from_slice(name.as_bytes());
    tail.get_mut(..2)
        .context("a request has flags")?
        .copy_from_slice(&WHOLE_FRAMES.to_ne_bytes());
    // SAFETY: TUNSETIFF reads a `struct ifreq`, as long as `request`, and keeps nothing of it.
    unsafe { ioctl(&file, Setter::<TUNSETIFF, [u8; IFREQ]>::new(request)) }
        .with_context(|| format!("cannot make the device {name}"))?;
    rustix::io::ioctl_fionbio(&file, true)?;
    // SAFETY: a file has the same descriptor until it is dropped, which the result does.
    Ok(unsafe { AsyncFd::register(file) }?)
}

/// Carries frames until it is aborted. A frame that a device does not take is lost, as on any cable.
async fn carry(
    from: Arc<AsyncFd<File>>,
    to: Arc<AsyncFd<File>>,
    damage: Damage,
    mut dice: Dice,
    damaged: Arc<AtomicU64>,
) {
    let mut frame = vec![0; FRAME];
    loop {
        let Ok(mut ready) = from.readable().await else {
            return;
        };
        let read = match ready.try_io(|file| file.get_ref().read(&mut frame)) {
            Ok(Ok(read)) => read,
            Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => continue,
            // Down for a moment, or nothing to read after all.
            Ok(Err(_)) => {
                tokio::task::yield_now().await;
                continue;
            }
            Err(_would_block) => continue,
        };
        let Some(bytes) = frame.get_mut(..read) else {
            continue;
        };
        if dice.below(damage.one_of) == 0 && scramble(bytes, damage.spared, &mut dice) {
            damaged.fetch_add(1, Ordering::Relaxed);
        }
        let _ = to.get_ref().write(bytes);
    }
}

/// Changes bits in the payload of a frame of TCP or UDP, if it has one.
fn scramble(frame: &mut [u8], spared: u16, dice: &mut Dice) -> bool {
    let Some(start) = payload(frame, spared) else {
        return false;
    };
    let length = (frame.len() - start) as u64;
    if dice.below(2) == 0 {
        let at = start + dice.below(length) as usize;
        frame[at] ^= 1 << dice.below(8);
        return true;
    }
    for _ in 0..64 {
        let first = start + dice.below(length) as usize;
        let second = start + dice.below(length) as usize;
        let bit = 1_u8 << dice.below(8);
        // Both in the same half of their words: the sum of the words stays the same.
        let is_alike = first % 2 == second % 2;
        if is_alike && (frame[first] ^ frame[second]) & bit != 0 {
            frame[first] ^= bit;
            frame[second] ^= bit;
            return true;
        }
    }
    false
}

/// Where the payload of a frame begins that has one and is of no spared port.
fn payload(frame: &[u8], spared: u16) -> Option<usize> {
    let packet = frame.get(ETHERNET..)?;
    let is_ipv4 = frame.get(12..14)? == [0x08, 0x00] && packet.first()? >> 4 == 4;
    let head = usize::from(packet.first()? & 0x0f) * 4;
    let segment = packet.get(head..)?;
    let port = |at: usize| {
        let bytes = segment.get(at..at + 2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    };
    let own = match *packet.get(9)? {
        TCP => usize::from(segment.get(12)? >> 4) * 4,
        UDP => 8,
        _ => return None,
    };
    let start = ETHERNET + head + own;
    // Short packets of Ethernet are padded: what is behind the packet is nobody's.
    let end = ETHERNET + usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    let is_spared = [port(0)?, port(2)?].contains(&spared);
    let has_some = start + 8 <= end.min(frame.len());
    (is_ipv4 && !is_spared && has_some).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of UDP between two ports.
    fn frame(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + 20 + 8];
        frame[12] = 0x08;
        frame[ETHERNET] = 0x45;
        frame[ETHERNET + 9] = UDP;
        let length = (20 + 8 + payload.len()) as u16;
        frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
        frame[ETHERNET + 20..ETHERNET + 22].copy_from_slice(&from.to_be_bytes());
        frame[ETHERNET + 22..ETHERNET + 24].copy_from_slice(&to.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// The sum that the checksums of IP, TCP and UDP are made of.
    fn sum(bytes: &[u8]) -> u32 {
        let words = bytes.chunks(2).map(|word| {
            let low = word.get(1).copied().unwrap_or_default();
            u32::from(u16::from_be_bytes([word[0], low]))
        });
        let sum: u32 = words.sum();
        (sum & 0xffff) + (sum >> 16)
    }

    #[test]
    fn the_payload_is_damaged_and_half_of_the_time_the_checksum_holds() {
        let text: Vec<u8> = (0..101).map(|byte: u32| (byte * 7 % 251) as u8).collect();
        let whole = frame(4001, 4002, &text);
        let (mut found, mut unfound) = (0, 0);
        for seed in 0..200 {
            let mut damaged = whole.clone();
            assert!(scramble(&mut damaged, 80, &mut Dice::new(seed, 0)));
            assert_ne!(damaged, whole);
            let head = ETHERNET + 28;
            assert_eq!(damaged[..head], whole[..head]);
            match sum(&damaged[ETHERNET..]) == sum(&whole[ETHERNET..]) {
                true => unfound += 1,
                false => found += 1,
            }
        }
        assert!(found > 50 && unfound > 50, "{found} and {unfound}");
    }

    #[test]
    fn the_api_and_frames_without_a_payload_pass() {
        let mut dice = Dice::new(1, 0);
        let text = [7; 40];
        for mut frame in [
            frame(80, 4002, &text),
            frame(4001, 80, &text),
            frame(4001, 4002, &[]),
            vec![0; 60],
            vec![0; 3],
        ] {
            let whole = frame.clone();
            assert!(!scramble(&mut frame, 80, &mut dice));
            assert_eq!(frame, whole);
        }
    }
}
