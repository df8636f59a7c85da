// Package devices holds the two address buses of the machine and the few legacy devices that stand on them: a 16550A
// UART, the reset line of an i8042, the CMOS with its clock, the ACPI sleep, reset and event registers, pvpanic, a
// debug exit and a boot timer.
//
// A [Bus] takes an access that left KVM_RUN to the [Handler] that owns the address. Handlers run on vCPU threads,
// several at a time, without allocation. The guest is not trusted: any offset and any size of access is answered, a byte
// device decodes a wider access byte by byte, and what nobody decodes reads as all ones.
//
// What a device tells the machine goes through an [Interrupt], which is an edge, or through a [Sink], which takes the
// guest's wish to end. The machine is also what plugs the devices together: nothing here knows an address, a GSI or KVM.
//
// Registers live in one plain struct for each device (SerialState, RTCState, PowerState), apart from goroutines and
// streams, so that a stopped machine can be written down. The devices without such a struct have no registers.
//
// Left out on purpose: the keyboard half of the i8042 (a probe of it costs the guest a second), RTC alarms and periodic
// interrupts (the clock has no interrupt line here), and everything that a virtio device does better.
//
// Sources: National Semiconductor PC16550D data sheet (1995); Motorola MC146818A data sheet; ACPI specification 6.5,
// sections 4.8.3.6, 4.8.3.7 and 5.6.9; the pvpanic and isa-debug-exit descriptions in QEMU's documentation.
package devices
