//! Messages for adapters that speak SMBus only: Linux's drivers make messages of SMBus calls
//! (`i2c_smbus_xfer_emulated`), and this makes the calls again.
//!
//! A group of messages is a call when the call puts the same bytes on the wire. Where several
//! would, the plainest that the adapter has is taken: a write of `command, length, data…` is an
//! I2C block of `length, data…` or an SMBus block of `data…`, and no device can tell them apart.
//!
//! - A block whose length the device says (`I2C_M_RECV_LEN`) does not exist in virtio-i2c, and its
//!   Linux driver does not offer it. A guest that knows the length reads it with its data; if the
//!   device says more, the adapter reads more and the guest gets the beginning.
//! - A block process call is two messages that are the same in that way.
//! - A packet error code (PEC) is a byte more in the guest's messages: it makes another call that
//!   has the same bytes (a byte of data with its PEC is a word), or there is none. It is never
//!   made or checked by the host's adapter.

use crate::host::{Data, Functionality, Message};

/// The longest block of SMBus.
pub(crate) const MAX_BLOCK: usize = 32;

/// A call whose answer goes into the message that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call<'a> {
    /// Nothing but the address and the direction.
    Quick { read: bool },
    /// One byte, sent.
    WriteByte(u8),
    /// One byte, received.
    ReadByte,
    /// A byte into a register.
    WriteByteData(u8, u8),
    /// A byte out of a register.
    ReadByteData(u8),
    /// Two bytes into a register, the low one first.
    WriteWordData(u8, u16),
    /// Two bytes out of a register.
    ReadWordData(u8),
    /// Two bytes in, two bytes out.
    Process(u8, u16),
    /// A block in, a block out, each with its length before it.
    BlockProcess(u8, &'a [u8]),
    /// A block into a register, with its length before it.
    WriteBlock(u8, &'a [u8]),
    /// A block out of a register, with its length before it.
    ReadBlock(u8),
    /// Bytes into registers.
    WriteI2cBlock(u8, &'a [u8]),
    /// So many bytes out of registers.
    ReadI2cBlock(u8, usize),
}

/// The call that does what these messages do; `None` when the adapter has none.
pub(crate) fn call<'a>(functions: Functionality, messages: &'a [Message<'_>]) -> Option<Call<'a>> {
    match messages {
        [one] => match &one.data {
            Data::Write(bytes) => write(functions, bytes),
            Data::Read(bytes) => read(functions, bytes.len()),
        },
        [first, second] if first.address == second.address => match (&first.data, &second.data) {
            (Data::Write(command), Data::Read(answer)) => {
                command_and_read(functions, command, answer.len())
            }
            _ => None,
        },
        _ => None,
    }
}

fn write(functions: Functionality, bytes: &[u8]) -> Option<Call<'_>> {
    use Functionality as F;
    match *bytes {
        [] if functions.has(F::QUICK) => Some(Call::Quick { read: false }),
        [byte] if functions.has(F::WRITE_BYTE) => Some(Call::WriteByte(byte)),
        [command, byte] if functions.has(F::WRITE_BYTE_DATA) => {
            Some(Call::WriteByteData(command, byte))
        }
        [command, low, high] if functions.has(F::WRITE_WORD_DATA) => Some(Call::WriteWordData(
            command,
            u16::from_le_bytes([low, high]),
        )),
        [command, ref block @ ..] => write_block(functions, command, block),
        [] => None,
    }
}

fn write_block(functions: Functionality, command: u8, bytes: &[u8]) -> Option<Call<'_>> {
    if functions.has(Functionality::WRITE_I2C_BLOCK) && (1..=MAX_BLOCK).contains(&bytes.len()) {
        return Some(Call::WriteI2cBlock(command, bytes));
    }
    let block = block(bytes).filter(|_| functions.has(Functionality::WRITE_BLOCK_DATA))?;
    Some(Call::WriteBlock(command, block))
}

/// The data of an SMBus block, which begins with its length.
fn block(bytes: &[u8]) -> Option<&[u8]> {
    let (&length, block) = bytes.split_first()?;
    let is_block = usize::from(length) == block.len() && (1..=MAX_BLOCK).contains(&block.len());
    is_block.then_some(block)
}

fn read<'a>(functions: Functionality, length: usize) -> Option<Call<'a>> {
    match length {
        0 if functions.has(Functionality::QUICK) => Some(Call::Quick { read: true }),
        1 if functions.has(Functionality::READ_BYTE) => Some(Call::ReadByte),
        _ => None,
    }
}

fn command_and_read(functions: Functionality, written: &[u8], length: usize) -> Option<Call<'_>> {
    use Functionality as F;
    // A block and its length: whether so much comes is seen when the block is there.
    let is_block = (2..=MAX_BLOCK + 1).contains(&length);
    match (written, length) {
        (&[command], 1) if functions.has(F::READ_BYTE_DATA) => Some(Call::ReadByteData(command)),
        (&[command], 2) if functions.has(F::READ_WORD_DATA) => Some(Call::ReadWordData(command)),
        (&[command], 1..=MAX_BLOCK) if functions.has(F::READ_I2C_BLOCK) => {
            Some(Call::ReadI2cBlock(command, length))
        }
        (&[command], _) if is_block && functions.has(F::READ_BLOCK_DATA) => {
            Some(Call::ReadBlock(command))
        }
        (&[command, low, high], 2) if functions.has(F::PROCESS_CALL) => {
            Some(Call::Process(command, u16::from_le_bytes([low, high])))
        }
        (&[command, ref bytes @ ..], _) if is_block && functions.has(F::BLOCK_PROCESS_CALL) => {
            block(bytes).map(|block| Call::BlockProcess(command, block))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    const ALL: Functionality = Functionality(Functionality::ALL_SMBUS);

    fn mapped(functions: Functionality, written: Option<&[u8]>, read: Option<usize>) -> String {
        let mut buffer = [0; 64];
        let address = Address::Seven(0x50);
        let mut messages = Vec::new();
        if let Some(bytes) = written {
            let data = Data::Write(bytes);
            messages.push(Message { address, data });
        }
        if let Some(length) = read {
            let data = Data::Read(&mut buffer[..length]);
            messages.push(Message { address, data });
        }
        call(functions, &messages).map_or_else(String::new, |call| format!("{call:?}"))
    }

    #[test]
    fn test_what_linux_makes_of_calls_is_mapped_back() {
        for (written, read, expected) in [
            (Some(&[][..]), None, "Quick { read: false }"),
            (None, Some(0), "Quick { read: true }"),
            (Some(&[7]), None, "WriteByte(7)"),
            (None, Some(1), "ReadByte"),
            (Some(&[1, 2]), None, "WriteByteData(1, 2)"),
            (Some(&[1]), Some(1), "ReadByteData(1)"),
            (Some(&[1, 2, 3]), None, "WriteWordData(1, 770)"),
            (Some(&[1]), Some(2), "ReadWordData(1)"),
            (Some(&[1, 2, 3]), Some(2), "Process(1, 770)"),
            (Some(&[1, 2, 3, 4]), None, "WriteI2cBlock(1, [2, 3, 4])"),
            (Some(&[1]), Some(32), "ReadI2cBlock(1, 32)"),
            (Some(&[1]), Some(33), "ReadBlock(1)"),
        ] {
            assert_eq!(mapped(ALL, written, read), expected);
        }
    }

    #[test]
    fn test_what_no_call_does_is_not_mapped() {
        for (written, read) in [
            // A write and a zero-length read: upstream's panic.
            (Some(&[1][..]), Some(0)),
            (None, Some(2)),
            (Some(&[]), Some(1)),
            (Some(&[1, 2]), Some(1)),
            (Some(&[1]), Some(34)),
            (Some(&[0; 34]), None),
            (None, None),
        ] {
            assert_eq!(mapped(ALL, written, read), "", "{written:?} {read:?}");
        }
    }

    #[test]
    fn test_a_poor_adapter_is_asked_for_what_it_has_only() {
        assert_eq!(mapped(Functionality(0), Some(&[1, 2]), None), "");
        let blocks = Functionality(Functionality::WRITE_BLOCK_DATA);
        assert_eq!(
            mapped(blocks, Some(&[1, 2, 3, 4]), None),
            "WriteBlock(1, [3, 4])"
        );
        assert_eq!(mapped(blocks, Some(&[1, 3, 3, 4]), None), "");
        let i2c_blocks = Functionality(Functionality::WRITE_I2C_BLOCK);
        assert_eq!(
            mapped(i2c_blocks, Some(&[1, 2]), None),
            "WriteI2cBlock(1, [2])"
        );
        assert_eq!(mapped(i2c_blocks, Some(&[1]), None), "");
    }

    #[test]
    fn test_a_block_that_begins_with_its_length_is_either_kind_of_block() {
        let bytes = [9, 3, 7, 8, 9];
        let mapped = |functions| mapped(Functionality(functions), Some(&bytes), None);
        let (i2c, smbus) = (
            Functionality::WRITE_I2C_BLOCK,
            Functionality::WRITE_BLOCK_DATA,
        );
        assert_eq!(mapped(i2c | smbus), "WriteI2cBlock(9, [3, 7, 8, 9])");
        assert_eq!(mapped(i2c), "WriteI2cBlock(9, [3, 7, 8, 9])");
        assert_eq!(mapped(smbus), "WriteBlock(9, [7, 8, 9])");
    }

    #[test]
    fn test_the_longest_blocks() {
        let mut bytes = [5; MAX_BLOCK + 2];
        bytes[1] = 32;
        assert!(mapped(ALL, Some(&bytes), None).starts_with("WriteBlock(5, [5, 5"));
        bytes[1] = 31;
        assert_eq!(mapped(ALL, Some(&bytes), None), "");
        let most = &bytes[..=MAX_BLOCK];
        assert!(mapped(ALL, Some(most), None).starts_with("WriteI2cBlock(5, [31"));
    }

    #[test]
    fn test_block_reads_say_how_much_they_expect() {
        let blocks = Functionality(Functionality::READ_BLOCK_DATA);
        assert_eq!(mapped(blocks, Some(&[1]), Some(2)), "ReadBlock(1)");
        assert_eq!(mapped(blocks, Some(&[1]), Some(33)), "ReadBlock(1)");
        // What Linux makes of a block read, whose length virtio-i2c cannot leave open.
        assert_eq!(mapped(blocks, Some(&[1]), Some(1)), "");
        assert_eq!(mapped(blocks, Some(&[1]), Some(34)), "");
    }

    #[test]
    fn test_block_process_calls() {
        let call = |functions: u32, written: &[u8], read| {
            mapped(Functionality(functions), Some(written), Some(read))
        };
        let process = Functionality::BLOCK_PROCESS_CALL;
        assert_eq!(call(process, &[9, 2, 7, 8], 5), "BlockProcess(9, [7, 8])");
        assert_eq!(call(process, &[9, 1, 7], 33), "BlockProcess(9, [7])");
        // The plainer call has the same bytes.
        let both = process | Functionality::PROCESS_CALL;
        assert_eq!(call(both, &[9, 1, 7], 2), "Process(9, 1793)");
        for (written, read) in [
            (&[9, 3, 7, 8][..], 5),
            (&[9, 0], 2),
            (&[9, 2, 7, 8], 34),
            // The length that Linux leaves open.
            (&[9, 2, 7, 8], 1),
        ] {
            assert_eq!(call(process, written, read), "", "{written:?} {read}");
        }
        assert_eq!(call(Functionality::ALL_SMBUS, &[9, 2, 7, 8], 5), "");
    }

    #[test]
    fn test_error_codes_of_packets_are_bytes_like_others() {
        const PEC: u8 = 0xcc;
        for (written, read, expected) in [
            // Send byte, byte data, word data, and their reads.
            (Some(&[1, PEC][..]), None, "WriteByteData(1, 204)"),
            (Some(&[1, 2, PEC]), None, "WriteWordData(1, 52226)"),
            (Some(&[1, 2, 3, PEC]), None, "WriteI2cBlock(1, [2, 3, 204])"),
            (Some(&[1]), Some(2), "ReadWordData(1)"),
            (Some(&[1]), Some(3), "ReadI2cBlock(1, 3)"),
            // A block of one byte.
            (Some(&[1, 1, 2, PEC]), None, "WriteI2cBlock(1, [1, 2, 204])"),
            // Receive byte; process call.
            (None, Some(2), ""),
            (Some(&[1, 2, 3]), Some(3), ""),
        ] {
            assert_eq!(mapped(ALL, written, read), expected);
        }
        let blocks = Functionality(Functionality::WRITE_BLOCK_DATA);
        assert_eq!(mapped(blocks, Some(&[1, 1, 2, PEC]), None), "");
    }

    #[test]
    fn test_two_addresses_are_no_call() {
        let mut answer = [0; 1];
        let message = |number, data| Message {
            address: Address::Seven(number),
            data,
        };
        let messages = [
            message(0x50, Data::Write(&[1])),
            message(0x51, Data::Read(&mut answer)),
        ];
        assert_eq!(call(ALL, &messages), None);
    }
}
