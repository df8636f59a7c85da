package guest

import (
	"strconv"
	"strings"
)

// cpuInfo takes the first processor's model, and whether it runs under a
// hypervisor, from the beginning of /proc/cpuinfo.
func cpuInfo(text string) (model string, virtual bool) {
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			if model != "" || virtual {
				break // the empty line that ends a processor
			}
			continue
		}
		switch strings.TrimSpace(key) {
		case "model name":
			model = strings.Join(strings.Fields(value), " ")
		case "flags":
			for flag := range strings.FieldsSeq(value) {
				virtual = virtual || flag == "hypervisor"
			}
		}
	}
	return model, virtual
}

// memInfo takes a value in kB from /proc/meminfo.
func memInfo(text, key string) (kB uint64, ok bool) {
	for line := range strings.Lines(text) {
		rest, found := strings.CutPrefix(line, key+":")
		if !found {
			continue
		}
		f := strings.Fields(rest)
		if len(f) != 2 || f[1] != "kB" {
			return 0, false
		}
		kB, err := strconv.ParseUint(f[0], 10, 64)
		return kB, err == nil
	}
	return 0, false
}

// cpuListLen counts the processors of a list such as "0-3,8,10-11"
// (Documentation/admin-guide/cputopology.rst). It is 0 for what is no list.
func cpuListLen(list string) int {
	const most = 1 << 20
	n := 0
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, errA := strconv.ParseUint(lo, 10, 20)
		b, errB := strconv.ParseUint(hi, 10, 20)
		if errA != nil || errB != nil || b < a || n > most {
			return 0
		}
		n += int(b-a) + 1
	}
	return n
}

// uart is a line of /proc/tty/driver/serial.
type uart struct {
	name, kind, where, irq string
}

// serialPorts returns the ports that have a UART behind them, for example from
// "0: uart:16550A port:000003F8 irq:4 tx:218 rx:0 RTS|CTS|DTR|DSR|CD".
func serialPorts(text string) []uart {
	var ports []uart
	for line := range strings.Lines(text) {
		number, rest, ok := strings.Cut(line, ":")
		if _, err := strconv.ParseUint(number, 10, 16); !ok || err != nil {
			continue
		}
		u := uart{name: "ttyS" + number}
		for f := range strings.FieldsSeq(rest) {
			key, value, _ := strings.Cut(f, ":")
			switch key {
			case "uart":
				u.kind = value
			case "port":
				u.where = "0x" + strings.ToLower(strings.TrimLeft(value, "0"))
			case "mmio":
				u.where = value
			case "irq":
				u.irq = value
			}
		}
		if u.kind != "" && u.kind != "unknown" {
			ports = append(ports, u)
		}
	}
	return ports
}

// pciFunction is a line of /proc/bus/pci/devices.
type pciFunction struct {
	vendor, device uint16
	driver         string
}

// pciFunctions takes lines of bus and devfn, vendor and device, and, after 15
// other numbers, the driver if there is one (drivers/pci/proc.c).
func pciFunctions(text string) []pciFunction {
	var all []pciFunction
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || len(f[1]) != 8 {
			continue
		}
		id, err := strconv.ParseUint(f[1], 16, 32)
		if err != nil {
			continue
		}
		p := pciFunction{vendor: uint16(id >> 16), device: uint16(id)}
		if len(f) > 17 {
			p.driver = f[17]
		}
		all = append(all, p)
	}
	return all
}

// Virtio's PCI numbers (virtio 1.3, 4.1.2 "PCI Device Discovery"): modern
// devices have their type added to pciVirtioModern; the transitional ones that
// exist have numbers of their own.
const (
	pciVendorVirtio = 0x1af4
	pciVirtioModern = 0x1040
	pciVirtioLast   = 0x107f
)

// virtioType returns the virtio device type of a PCI function, 0 if it is not
// a virtio device.
func (p pciFunction) virtioType() uint16 {
	if p.vendor != pciVendorVirtio {
		return 0
	}
	if p.device >= pciVirtioModern && p.device <= pciVirtioLast {
		return p.device - pciVirtioModern
	}
	switch p.device {
	case 0x1000:
		return 1
	case 0x1001:
		return 2
	case 0x1002:
		return 5
	case 0x1003:
		return 3
	case 0x1004:
		return 8
	case 0x1005:
		return 4
	case 0x1009:
		return 9
	}
	return 0
}

// virtioName names a device type (virtio 1.3, 5 "Device Types").
func virtioName(kind uint16) string {
	switch kind {
	case 1:
		return "net"
	case 2:
		return "block"
	case 3:
		return "console"
	case 4:
		return "rng"
	case 5:
		return "balloon"
	case 8:
		return "scsi"
	case 9:
		return "9p"
	case 16:
		return "gpu"
	case 18:
		return "input"
	case 19:
		return "vsock"
	case 20:
		return "crypto"
	case 24:
		return "mem"
	case 26:
		return "fs"
	case 27:
		return "pmem"
	}
	return "type " + strconv.Itoa(int(kind))
}
