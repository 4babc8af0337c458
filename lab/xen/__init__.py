"""What a test case speaks: hosts (dom0), domains, guest payloads, migrations. Knows no driver and no QEMU."""
