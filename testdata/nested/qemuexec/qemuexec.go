// Package qemuexec runs a command in a guest of QEMU over this machine's files, with its
// output and its exit code, as vimto and virtme-ng do it: a small initramfs loads the
// drivers, mounts the root from 9p or from a virtiofsd that is started with it, lays
// an overlay in memory over it, runs the command, and says its code by a virtio port.
//
// It is what `vole exec` is compared with. Nothing that is shipped links it.
package qemuexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/testdata/nested"
)

// Share is how the guest gets at this machine's files.
type Share string

// The ways that QEMU has.
const (
	NineP     Share = "9p"
	Virtiofsd Share = "virtiofs"
)

// ErrNoShare is a kernel without the file system of the share.
var ErrNoShare = errors.New("qemuexec: the kernel has no such file system")

// QEMU is a way to run commands.
type QEMU struct {
	Machine string // as -M takes it
	Share   Share
	Kernel  string // bzImage, or a vmlinux with a PVH entry
	Initrd  string // of WriteInitrd, for this share
	Memory  string // as -m takes it
	CPUs    int
	Scratch string // a directory for sockets and what the ports say
}

// Command is one command.
type Command struct {
	Args []string // no word of them with a space
	Dir  string   // "" is /; another one needs a /bin/sh
}

// Result is how it ended.
type Result struct {
	Code   int
	Output []byte // stdout and stderr
}

// script is the guest's /init; %s is the modules.
const script = `#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
%s
cwd=/ run= # the kernel hands words of its command line over as variables, too
for word in $(cat /proc/cmdline); do
	case $word in
	share=*) share=${word#share=} ;;
	cwd=*) cwd=${word#cwd=} ;;
	run=*) run="$run ${word#run=}" ;;
	esac
done
mkdir -p /share /memory /root
case $share in
9p) mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /share ;;
*) mount -t virtiofs -o ro root /share ;;
esac
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/share,upperdir=/memory/upper,workdir=/memory/work overlay /root
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=0666 pts /dev/pts
mount -t tmpfs shm /dev/shm
for dir in proc sys dev; do mkdir -p /root/$dir; mount -o move /$dir /root/$dir; done
ifconfig lo 127.0.0.1 up
for port in /root/dev/vport*p1; do code=$port; done
for port in /root/dev/vport*p2; do out=$port; done
set -- $run
[ $cwd = / ] || set -- /bin/sh -c 'cd "$0" && exec "$@"' $cwd "$@"
env -i PATH=/bin:/usr/bin HOME=/root chroot /root "$@" >$out 2>&1 </root/dev/null
echo "CODE $?" >$code
sync
poweroff -f
`

// Drivers are the modules of a guest with a share.
func Drivers(s Share) []string {
	drivers := []string{"virtio_pci", "virtio_mmio", "virtio_console", "overlay"}
	if s == NineP {
		return append(drivers, "9p", "9pnet_virtio")
	}
	return append(drivers, "virtiofs")
}

// WriteInitrd writes the initramfs of guests of a kernel with busybox, whose path is
// given, to path. It wraps ErrNoShare if the kernel lacks the share's modules.
func WriteInitrd(path, image, busybox string, s Share) error {
	modules, err := kernel.ModulesFor(image)
	if err != nil {
		return err
	}
	dir, err := initramfs.OpenModules(modules)
	if err != nil {
		return err
	}
	sel, err := dir.Select(initramfs.SelectOptions{}, Drivers(s)...)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNoShare, s, err)
	}
	var a initramfs.Archive
	names, err := a.AddModules(dir, sel, "modules")
	if err != nil {
		return err
	}
	var load strings.Builder
	for _, name := range names {
		fmt.Fprintf(&load, "insmod /%s\n", name)
	}
	for _, d := range []string{"/bin", "/proc", "/sys", "/dev", "/tmp"} {
		if err := a.Dir(d, 0o755); err != nil {
			return err
		}
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	if err := errors.Join(
		a.CharDevice("/dev/console", 0o600, 5, 1),
		a.Bytes("/bin/busybox", 0o755, program),
		a.Bytes("/init", 0o755, fmt.Appendf(nil, script, load.String())),
	); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = a.Image().WriteTo(f)
	return errors.Join(err, f.Close())
}

// Run runs a command whole, from the start of QEMU to its end. That the command
// fails is no error; that its code is not known is one, which shows the last of the
// guest's console.
func (q QEMU) Run(ctx context.Context, c Command) (Result, error) {
	code, out := filepath.Join(q.Scratch, "code"), filepath.Join(q.Scratch, "out")
	bus := "pci"
	if q.Machine != "q35" {
		bus = "device"
	}
	args := []string{"-accel", "kvm", "-cpu", "host", "-M", q.Machine,
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-m", q.Memory, "-smp", strconv.Itoa(q.CPUs), "-kernel", q.Kernel, "-initrd", q.Initrd,
		"-append", "console=ttyS0 reboot=k panic=-1 quiet share=" + string(q.Share) + " cwd=" + c.dir() + " run=" + strings.Join(c.Args, " run="),
		"-device", "virtio-serial-" + bus,
		"-chardev", "file,id=code,path=" + code, "-device", "virtserialport,chardev=code,name=code",
		"-chardev", "file,id=out,path=" + out, "-device", "virtserialport,chardev=out,name=out"}
	share, stop, err := q.share(ctx, bus)
	if err != nil {
		return Result{}, err
	}
	defer stop()
	cmd, err := nested.QEMUCommand(ctx, slices.Concat(args, share)...)
	if err != nil {
		return Result{}, err
	}
	var r Result
	console, err := cmd.CombinedOutput()
	r.Output, _ = os.ReadFile(out)
	if err != nil {
		return r, fmt.Errorf("qemuexec: QEMU: %w: %s", err, tail(console))
	}
	said, err := os.ReadFile(code)
	if err != nil {
		return r, err
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(string(said)), "CODE ")
	if r.Code, err = strconv.Atoi(text); !ok || err != nil {
		return r, fmt.Errorf("qemuexec: the guest has not said its code: %s", tail(console))
	}
	return r, nil
}

func (c Command) dir() string {
	if c.Dir == "" {
		return "/"
	}
	return c.Dir
}

func tail(console []byte) []byte { return console[max(0, len(console)-400):] }

// share is QEMU's options for the root, and what they need that runs besides.
func (q QEMU) share(ctx context.Context, bus string) (args []string, stop func(), err error) {
	if q.Share == NineP {
		return []string{"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
			"-device", "virtio-9p-" + bus + ",fsdev=root,mount_tag=root"}, func() {}, nil
	}
	socket := filepath.Join(q.Scratch, "fs")
	stop, err = StartVirtiofsd(ctx, socket, "/")
	return []string{"-object", "memory-backend-memfd,id=mem,share=on,size=" + q.Memory, "-numa", "node,memdev=mem",
		"-chardev", "socket,id=fs,path=" + socket, "-device", "vhost-user-fs-" + bus + ",chardev=fs,tag=root"}, stop, err
}

// StartVirtiofsd starts a virtiofsd for one QEMU, and returns when it listens. stop
// ends it and removes its socket.
func StartVirtiofsd(ctx context.Context, socket, source string) (stop func(), err error) {
	fs, err := nested.VirtiofsdCommand(ctx, "--socket-path="+socket, "-o", "source="+source, "-o", "cache=auto", "-o", "sandbox=chroot", "-o", "xattr")
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	fs.Stdout, fs.Stderr = &said, &said
	if err := fs.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = fs.Process.Kill()
		_ = fs.Wait()
		_ = os.Remove(socket)
	}
	for {
		if _, err := os.Stat(socket); err == nil {
			return stop, nil
		}
		select {
		case <-ctx.Done():
			stop()
			return nil, fmt.Errorf("qemuexec: virtiofsd: %w: %s", ctx.Err(), said.Bytes())
		case <-time.After(time.Millisecond):
		}
	}
}
