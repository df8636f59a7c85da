package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/vmm"
)

// pvmSays explains the KVM that runs on a processor with neither VMX nor SVM.
const pvmSays = "/dev/kvm answers, but the processor shows neither vmx nor svm: a paravirtual KVM (PVM), which emulates the guest's kernel instruction by instruction; a stock kernel does not reach user space in it"

// pvmFix is how to go on there.
const pvmFix = "use a host with VMX or SVM (for a VM: enable nested virtualization for it), or an emulated one as vole's `make demo` and `make test` do"

// thisHost asks the host that vole runs on.
func thisHost(ctx context.Context) *patient {
	p := &patient{root: "/", user: os.Getenv("USER"), kernels: kernel.Find()}
	if p.user == "" {
		p.user = "$USER"
	}
	p.groups, _ = os.Getgroups()
	p.groups = append(p.groups, os.Getegid())
	p.info, p.err = vmm.Probe(ctx)
	p.beneath = tryBeneath()
	return p
}

func (p *patient) path(name string) string { return filepath.Join(p.root, name) }

// word is the content of a small file, or "".
func (p *patient) word(name string) string {
	b, err := os.ReadFile(p.path(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (p *patient) exists(name string) bool {
	_, err := os.Stat(p.path(name))
	return err == nil
}

// device is about /dev/kvm itself.
func (p *patient) device(d *diagnosis) {
	const name = "kvm"
	switch {
	case p.err == nil:
		d.add(levelOK, name, "", "%s can be used, up to %d vCPUs in a machine", vmm.KVMDevice, min(p.info.MaxCPUs, vmm.MaxCPUs))
	case errors.Is(p.err, fs.ErrNotExist):
		d.add(levelFail, name, p.fixAbsent(), "there is no %s", vmm.KVMDevice)
	case errors.Is(p.err, fs.ErrPermission):
		d.add(levelFail, name, p.fixPermission(), "no permission to use %s", vmm.KVMDevice)
	case errors.Is(p.err, syscall.ENODEV), errors.Is(p.err, syscall.ENXIO):
		d.add(levelFail, name, p.fixAbsent(), "%s is there, but no KVM behind it", vmm.KVMDevice)
	case errors.Is(p.err, syscall.EBUSY):
		d.add(levelFail, name, "end the other hypervisor (VirtualBox, VMware) that has the processor's virtualization", "%v", p.err)
	case p.notKVM():
		d.add(levelFail, name, "remove what is there, then: "+p.fixAbsent(), "%s isn't KVM: %v", vmm.KVMDevice, p.err)
	default:
		d.add(levelFail, name, "", "%v", p.err)
	}
}

// notKVM says whether the device file is none, or another device's: KVM is 10:232.
func (p *patient) notKVM() bool {
	var st unix.Stat_t
	if err := unix.Stat(p.path(vmm.KVMDevice), &st); err != nil {
		return false
	}
	return st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(10, 232)
}

func (p *patient) fixAbsent() string {
	switch {
	case p.exists(".dockerenv") || p.exists("run/.containerenv"):
		return "start the container with --device /dev/kvm"
	case p.info.Virtualization == vmm.VMX:
		return "sudo modprobe kvm_intel"
	case p.info.Virtualization == vmm.SVM:
		return "sudo modprobe kvm_amd"
	case p.info.InVM:
		return "enable nested virtualization for this VM where it is hosted"
	}
	return "enable virtualization (VT-x, AMD-V or SVM) in the firmware's set-up"
}

// fixPermission names the command for the group that the device belongs to.
func (p *patient) fixPermission() string {
	var st unix.Stat_t
	if err := unix.Stat(p.path(vmm.KVMDevice), &st); err != nil {
		return ""
	}
	group := p.groupName(int(st.Gid))
	switch {
	case st.Mode&0o060 != 0o060 || st.Gid == 0:
		return "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && sudo usermod -aG kvm " + p.user + ", then log in again"
	case slices.Contains(p.groups, int(st.Gid)):
		return "the group " + group + " may use it and you are in it: something else forbids it (a container or a security module)"
	}
	return "sudo usermod -aG " + group + " " + p.user + ", then log in again (or: newgrp " + group + ")"
}

// groupName looks in /etc/group; a group that is not there has its number for a name.
func (p *patient) groupName(gid int) string {
	f, err := os.Open(p.path("etc/group"))
	if err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Split(lines.Text(), ":")
			if len(fields) > 2 && fields[2] == strconv.Itoa(gid) {
				return fields[0]
			}
		}
	}
	return strconv.Itoa(gid)
}

// processor is about what KVM stands on, how fast that is, and what KVM lacks.
func (p *patient) processor(d *diagnosis) {
	const name = "virtualization"
	v := p.info.Virtualization
	rate := ""
	if p.info.InstructionRate > 0 {
		rate = fmt.Sprintf("; a test guest ran at %.1f million instructions a second", p.info.InstructionRate/1e6)
	}
	switch {
	case p.err != nil && v == vmm.NoVirtualization:
		d.add(levelFail, name, "", "the processor shows neither vmx nor svm")
	case v == vmm.NoVirtualization:
		d.add(levelFail, name, pvmFix, "%s%s", pvmSays, rate)
	case p.err == nil && len(p.info.Missing) == 0 && !p.info.CanBootStock():
		d.add(levelFail, name, pvmFix, "%s, but emulated%s", v, rate)
	default:
		d.add(levelOK, name, "", "%s%s", v, rate)
	}
	if len(p.info.Missing) > 0 {
		d.add(levelFail, "capabilities", "run a newer Linux on the host (4.11 has them all)", "KVM lacks %s", strings.Join(p.info.Missing, ", "))
	} else if p.err == nil {
		d.add(levelOK, "capabilities", "", "KVM has all that a machine needs")
	}
}

// nesting is about virtual machines within virtual machines.
func (p *patient) nesting(d *diagnosis) {
	const name = "nested"
	inner := "guests get no virtualization of their own"
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		switch p.word("sys/module/" + module + "/parameters/nested") {
		case "1", "Y":
			inner = "its KVM could nest further"
		}
	}
	if p.info.InVM {
		d.add(levelOK, name, "", "this host is itself a virtual machine: every exit of a guest costs more; %s", inner)
		return
	}
	d.add(levelOK, name, "", "this host is not a virtual machine; %s", inner)
}

// tryDevice opens a device, as who uses it does: a file in /dev may have nothing behind it.
func (p *patient) tryDevice(name string) error {
	fd, err := unix.Open(p.path(name), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

// tun is about the device that guest networks over tap need.
func (p *patient) tun(d *diagnosis) {
	const name, dev = "tun", "dev/net/tun"
	err := p.tryDevice(dev)
	switch {
	case err == nil:
		d.add(levelOK, name, "", "/dev/net/tun can be used: a network over a tap device is possible; %s", p.createsTaps())
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		d.add(levelWarn, name, "sudo modprobe tun", "/dev/net/tun has no driver in this kernel: no network over a tap device")
	case errors.Is(err, fs.ErrNotExist):
		d.add(levelWarn, name, "sudo modprobe tun (in a container: --device /dev/net/tun)", "there is no /dev/net/tun: no network over a tap device")
	default:
		d.add(levelWarn, name, "sudo chmod 666 /dev/net/tun", "/dev/net/tun: %v: no network over a tap device", err)
	}
}

// createsTaps says whether this process may make taps, which takes CAP_NET_ADMIN.
func (p *patient) createsTaps() string {
	const capNetAdmin = 12
	caps, err := strconv.ParseUint(field(p.word("proc/self/status"), "CapEff"), 16, 64)
	switch {
	case err != nil:
		return "whether vole may make one (create) is not known"
	case caps>>capNetAdmin&1 != 0:
		return "vole may make one (create)"
	}
	return "making one takes root: sudo ip tuntap add dev tap0 mode tap user $USER"
}

// userNet is about --net user, which needs no more than sockets. A ping takes a group in a range.
func (p *patient) userNet(d *diagnosis) {
	const name, file = "user network", "proc/sys/net/ipv4/ping_group_range"
	const always = "--net user, --vsock and --port work without any rights"
	low, high, ok := strings.Cut(p.word(file), "\t")
	from, err1 := strconv.Atoi(strings.TrimSpace(low))
	to, err2 := strconv.Atoi(strings.TrimSpace(high))
	within := func(gid int) bool { return from <= gid && gid <= to }
	switch {
	case !ok || err1 != nil || err2 != nil:
		d.add(levelOK, name, "", "%s; whether guests can ping is not known", always)
	case slices.ContainsFunc(p.groups, within):
		d.add(levelOK, name, "", "%s, and guests can ping", always)
	default:
		d.add(levelWarn, name, `sudo sysctl net.ipv4.ping_group_range="0 2147483647"`, "%s, but guests can't ping the outside: your groups are not among those that may", always)
	}
}

// vhost is about the kernel's own half of a tap device's queues.
func (p *patient) vhost(d *diagnosis) {
	const name, dev = "vhost-net", "dev/vhost-net"
	err := p.tryDevice(dev)
	switch {
	case err == nil:
		d.add(levelOK, name, "", "/dev/vhost-net can be used: --net tap=NAME,vhost is possible")
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		d.add(levelWarn, name, "sudo modprobe vhost_net", "/dev/vhost-net has no driver in this kernel: no vhost for a tap device")
	case errors.Is(err, fs.ErrNotExist):
		d.add(levelWarn, name, "sudo modprobe vhost_net", "there is no /dev/vhost-net: no vhost for a tap device")
	default:
		d.add(levelWarn, name, "sudo chmod 666 /dev/vhost-net", "/dev/vhost-net: %v: no vhost for a tap device", err)
	}
}

// tryBeneath opens a directory as package hostdir opens all files.
func tryBeneath() error {
	fd, err := unix.Openat2(unix.AT_FDCWD, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH})
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// sharing is about this machine's files in guests.
func (p *patient) sharing(d *diagnosis) {
	const name = "shared files"
	if p.beneath != nil {
		d.add(levelWarn, name, "Linux 5.6 or newer on the host, and a sandbox that allows openat2", "openat2: %v: no vole exec, no vmtest, no --share", p.beneath)
		return
	}
	d.add(levelOK, name, "", "vole exec, vmtest and --share can show files of this machine to a guest")
}

// hugePages is about the pages that hold the guest's memory.
func (p *patient) hugePages(d *diagnosis) {
	const name, dir = "huge pages", "sys/kernel/mm/transparent_hugepage/"
	pool := p.meminfo("HugePages_Free")
	says := fmt.Sprintf("transparent for anonymous memory: %s, for memfd: %s; reserved and free: %s",
		chosen(p.word(dir+"enabled")), chosen(p.word(dir+"shmem_enabled")), pool)
	switch chosen(p.word(dir + "enabled")) {
	case "madvise":
		d.add(levelOK, name, "", "%s", says)
	case "always":
		d.add(levelOK, name, "", "%s (with always, vole's own memory swells too)", says)
	default:
		d.add(levelWarn, name, "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled", "%s", says)
	}
}

// chosen is the word in brackets of a file such as "always [madvise] never".
func chosen(s string) string {
	_, s, ok := strings.Cut(s, "[")
	s, _, closed := strings.Cut(s, "]")
	if !ok || !closed {
		return "unknown"
	}
	return s
}

// meminfo is the value of a line of /proc/meminfo, or "unknown".
func (p *patient) meminfo(key string) string {
	return cmp.Or(field(p.word("proc/meminfo"), key), "unknown")
}

// field is the value of a key in lines of "key: value", or "".
func field(text, key string) string {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok && name == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// images is about the kernels that there are to boot.
func (p *patient) images(d *diagnosis) {
	const name = "kernels"
	good, unreadable := 0, ""
	for _, k := range p.kernels {
		if k.Err == nil {
			good++
		} else if errors.Is(k.Err, fs.ErrPermission) && unreadable == "" {
			unreadable = k.Path
		}
	}
	switch {
	case good > 0:
		d.add(levelOK, name, "", "%d found: `vole kernel ls` lists them", good)
	case unreadable != "":
		d.add(levelWarn, name, "vole kernel pull NAME (needs no root), or sudo chmod a+r "+unreadable, "%s may not be read", unreadable)
	default:
		d.add(levelWarn, name, "vole kernel pull NAME (needs no root), or sudo apt install linux-image-amd64, or a file with --kernel", "none found")
	}
}
