// Frequencies and idle states of a virtual board's processors, by I/O ports: docs/virtual-lab.md, "Frequencies and idle
// states". cpu.asl has what each processor says of them.
//
// Each processor has a register of one byte: 0xe0, 0xe1, 0xe2. A frequency's value there is its number of 100 MHz. The
// byte at 0xe3 is what _PPC answers. All four are the scratch register of QEMU's pc-testdev, so nothing comes of them.
// Nothing is at 0xe9 and 0xea either: an idle state that is entered there ends at once.
DefinitionBlock ("", "SSDT", 2, "XENLAB", "POWER", 1)
{
    Scope (\_SB)
    {
        Device (POWR)
        {
            Name (_HID, "XLAB0001")
            OperationRegion (PORT, SystemIO, 0xE0, 4)
            Field (PORT, ByteAcc, NoLock, Preserve)
            {
                Offset (3),
                LIMI, 8
            }
            Name (STAT, Package ()    // MHz, mW, latency of a change and of the bus in us, control, status
            {
                Package () { 2600, 10000, 10, 10, 26, 26 },
                Package () { 2000, 7000, 10, 10, 20, 20 },
                Package () { 1400, 4500, 10, 10, 14, 14 },
                Package () { 800, 2000, 10, 10, 8, 8 }
            })
            Name (IDLE, Package ()    // how it is entered, type, latency in us, mW
            {
                3,
                Package () { ResourceTemplate () { Register (FFixedHW, 0, 0, 0) }, 1, 1, 1000 },
                Package () { ResourceTemplate () { Register (SystemIO, 8, 0, 0xE9) }, 2, 2, 500 },
                Package () { ResourceTemplate () { Register (SystemIO, 8, 0, 0xEA) }, 3, 10, 100 }
            })
        }
    }
}
