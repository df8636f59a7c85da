package guest

import (
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What one file may give at most, in bytes.
const (
	maxFile = 64 << 10
	// cpuinfoHead holds the first processor. The kernel hands out no more
	// than fits, so the others are never asked.
	cpuinfoHead = 4 << 10
)

// sources is where facts come from: all that is not a file is a value, so that
// a test can give it.
type sources struct {
	root    fs.FS
	cmdline string        // of the kernel
	uptime  time.Duration // when init began, since the kernel did
	release string        // uname -r
	version string        // uname -v
	machine string        // uname -m
	log     string        // as from kernelLog
	mounts  []mount
}

// systemSources asks the running kernel. The files are read later.
func systemSources(cmdline string, uptime time.Duration, mounts []mount) sources {
	s := sources{root: rootFS{}, cmdline: cmdline, uptime: uptime, log: kernelLog(), mounts: mounts}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		s.release = unix.ByteSliceToString(u.Release[:])
		s.version = unix.ByteSliceToString(u.Version[:])
		s.machine = unix.ByteSliceToString(u.Machine[:])
	}
	return s
}

// uptime is the time since the kernel started its clock.
func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// facts is what the report says. What could not be found out is zero.
type facts struct {
	sources
	words words

	cpus                    int // online
	model                   string
	sockets, cores, threads int // cores of a socket, threads of a core

	memTotal, memAvailable uint64 // kB

	clock      string
	clockOther []string
	hypervisor string

	consoles []string
	ports    []uart
	pci      []pciFunction
	virtio   []string
	disks    []string
	nets     []string

	messages messages
}

func collect(s sources) facts {
	f := facts{sources: s}
	f.words = parseWords(f.cmdline)
	f.messages = parseLog(s.log)
	f.collectCPUs()
	meminfo := readHead(s.root, "proc/meminfo", cpuinfoHead)
	f.memTotal, _ = memInfo(meminfo, "MemTotal")
	f.memAvailable, _ = memInfo(meminfo, "MemAvailable")
	f.collectClock()
	f.consoles = strings.Fields(f.line("sys/class/tty/console/active"))
	f.ports = serialPorts(readHead(s.root, "proc/tty/driver/serial", maxFile))
	f.pci = pciFunctions(readHead(s.root, "proc/bus/pci/devices", maxFile))
	f.collectVirtio()
	f.collectPorts()
	f.collectDisks()
	f.collectNets()
	return f
}

// line is the first line of a small file, without white space around it.
func (f *facts) line(name string) string {
	text, _, _ := strings.Cut(readHead(f.root, name, 4096), "\n")
	return strings.TrimSpace(text)
}

// list is the names in a directory, sorted.
func (f *facts) list(dir string) []string {
	entries, err := fs.ReadDir(f.root, dir)
	if err != nil {
		return nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

func (f *facts) collectCPUs() {
	const cpus = "sys/devices/system/cpu/"
	model, virtual := cpuInfo(readHead(f.root, "proc/cpuinfo", cpuinfoHead))
	f.model = model
	f.hypervisor = f.messages.hypervisor
	if f.hypervisor == "" && virtual {
		f.hypervisor = "yes, of a kind that the kernel did not name"
	}
	f.cpus = cpuListLen(f.line(cpus + "online"))
	thread := cpuListLen(f.line(cpus + "cpu0/topology/core_cpus_list"))
	socket := cpuListLen(f.line(cpus + "cpu0/topology/package_cpus_list"))
	if thread > 0 && socket >= thread && f.cpus >= socket {
		f.threads, f.cores, f.sockets = thread, socket/thread, f.cpus/socket
	}
}

func (f *facts) collectClock() {
	const dir = "sys/devices/system/clocksource/clocksource0/"
	f.clock = f.line(dir + "current_clocksource")
	for _, c := range strings.Fields(f.line(dir + "available_clocksource")) {
		if c != f.clock {
			f.clockOther = append(f.clockOther, c)
		}
	}
}

// collectVirtio lists the devices that a transport's driver found, and those
// that wait for one: in many distributions the transports are modules.
func (f *facts) collectVirtio() {
	const dir = "sys/bus/virtio/devices"
	for _, name := range f.list(dir) {
		id, err := strconv.ParseUint(f.line(path.Join(dir, name, "device")), 0, 16)
		if err != nil {
			continue
		}
		device := virtioName(uint16(id))
		if _, err := fs.ReadLink(f.root, path.Join(dir, name, "driver")); err != nil {
			device += " (no driver)"
		}
		f.virtio = append(f.virtio, device)
	}
	for _, p := range f.pci {
		if kind := p.virtioType(); kind != 0 && p.driver == "" {
			f.virtio = append(f.virtio, virtioName(kind)+" (pci, no driver)")
		}
	}
	const platform = "sys/bus/platform/devices"
	slots := 0
	for _, name := range f.list(platform) {
		if !strings.HasPrefix(name, "LNRO0005:") && !strings.HasPrefix(name, "virtio-mmio.") {
			continue
		}
		if _, err := fs.ReadLink(f.root, path.Join(platform, name, "driver")); err != nil {
			slots++
		}
	}
	if slots > 0 {
		f.virtio = append(f.virtio, plural(slots, "mmio slot")+" (no driver)")
	}
}

// collectDisks lists whole disks that have a size.
func (f *facts) collectDisks() {
	const dir = "sys/class/block"
	for _, name := range f.list(dir) {
		disk := path.Join(dir, name)
		sectors, err := strconv.ParseUint(f.line(path.Join(disk, "size")), 10, 54)
		if err != nil || sectors == 0 || f.line(path.Join(disk, "partition")) != "" {
			continue
		}
		text := name + " " + bytesText(sectors*512)
		if f.line(path.Join(disk, "ro")) == "1" {
			text += " read-only"
		}
		f.disks = append(f.disks, text)
	}
}

func (f *facts) collectNets() {
	const dir = "sys/class/net"
	for _, name := range f.list(dir) {
		text := name
		if address := f.line(path.Join(dir, name, "address")); address != "" && strings.Trim(address, "0:") != "" {
			text += " " + address
			if mtu := f.line(path.Join(dir, name, "mtu")); mtu != "" && mtu != "1500" {
				text += " mtu " + mtu
			}
		}
		f.nets = append(f.nets, text)
	}
}

// collectPorts lists the named ports of virtio consoles.
func (f *facts) collectPorts() {
	const dir = "sys/class/virtio-ports"
	for _, port := range f.list(dir) {
		if name := f.line(path.Join(dir, port, "name")); name != "" {
			f.virtio = append(f.virtio, "port "+name+" ("+port+")")
		}
	}
}
