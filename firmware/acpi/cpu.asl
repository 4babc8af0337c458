// One processor of those that power.asl is for. The Makefile puts its number in the place of @N@.
DefinitionBlock ("", "SSDT", 2, "XENLAB", "CPU@N@", 1)
{
    External (\_SB.CPUS.C00@N@, ProcessorObj)
    External (\_SB.POWR.STAT, PkgObj)
    External (\_SB.POWR.LIMI, FieldUnitObj)
    External (\_SB.POWR.IDLE, PkgObj)
    Scope (\_SB.CPUS.C00@N@)
    {
        Name (_PCT, Package ()
        {
            ResourceTemplate () { Register (SystemIO, 8, 0, 0xE@N@) },
            ResourceTemplate () { Register (SystemIO, 8, 0, 0xE@N@) }
        })
        Name (_PSD, Package () { Package () { 5, 0, @N@, 0xFE, 1 } })    // HW_ALL, and alone in its domain
        Method (_PSS) { Return (\_SB.POWR.STAT) }
        Method (_PPC) { Return (\_SB.POWR.LIMI) }
        Method (_CST) { Return (\_SB.POWR.IDLE) }
    }
}
