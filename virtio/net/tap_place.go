package net

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// place is the network namespace that a Tap is of: its interface is looked for there,
// whatever the namespace of the thread that looks.
type place struct {
	socket int // any of it, to ask of interfaces
	ns     int // -1 where the host has no /proc
}

// here is the place of the calling thread.
func here() (*place, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("a socket to ask for interfaces: %w", err)
	}
	p := &place{socket: s, ns: -1}
	if fd, err := openNamespace(); err == nil {
		p.ns = fd
	}
	return p, nil
}

func openNamespace() (int, error) {
	return unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

func (p *place) close() error {
	err := unix.Close(p.socket)
	if p.ns >= 0 {
		err = errors.Join(err, unix.Close(p.ns))
	}
	return err
}

// enter locks the goroutine to its thread, for good, and moves that to the place if
// it is not there. The goroutine ends soon, and the thread with it.
func (p *place) enter() error {
	if p.ns < 0 {
		return nil
	}
	fd, err := openNamespace()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var mine, wanted unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &mine), unix.Fstat(p.ns, &wanted)); err != nil {
		return err
	}
	if mine.Ino == wanted.Ino && mine.Dev == wanted.Dev {
		return nil
	}
	runtime.LockOSThread()
	return unix.Setns(p.ns, unix.CLONE_NEWNET)
}

// index is the interface's number; ENODEV if there is none of that name.
func (p *place) index(name string) (uint32, error) {
	r, err := p.ask(name, unix.SIOCGIFINDEX)
	if err != nil {
		return 0, err
	}
	return r.Uint32(), nil
}

// mtu is the interface's, in bytes.
func (p *place) mtu(name string) (int, error) {
	r, err := p.ask(name, unix.SIOCGIFMTU)
	if err != nil {
		return 0, fmt.Errorf("ask for the MTU: %w", err)
	}
	return int(r.Uint32()), nil
}

func (p *place) ask(name string, what uint) (*unix.Ifreq, error) {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(p.socket, what, r); err != nil {
		return nil, err
	}
	return r, nil
}

func (p *place) isUp(name string) bool {
	r, err := p.ask(name, unix.SIOCGIFFLAGS)
	return err == nil && r.Uint16()&unix.IFF_UP != 0
}

// maxTapMTU is what the kernel lets a tap have: 65,535 less an Ethernet header.
const maxTapMTU = 65521

// setMTU is `ip link set name mtu n`.
func (p *place) setMTU(name string, n int) error {
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint32(uint32(n))
		err = unix.IoctlIfreq(p.socket, unix.SIOCSIFMTU, r)
	}
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("set its MTU to %d: a tap's is from 68 to %d bytes (%w)", n, maxTapMTU, err)
	case err != nil:
		return fmt.Errorf("set its MTU to %d: %w", n, err)
	}
	return nil
}

// bringUp is `ip link set name up`.
func (p *place) bringUp(name string) error {
	r, err := p.ask(name, unix.SIOCGIFFLAGS)
	if err == nil {
		r.SetUint16(r.Uint16() | unix.IFF_UP)
		err = unix.IoctlIfreq(p.socket, unix.SIOCSIFFLAGS, r)
	}
	if err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	return nil
}

// isTap reports whether an interface is a tap: a tun is of the same driver.
func (p *place) isTap(name string) bool {
	i, err := unix.IoctlGetEthtoolDrvinfo(p.socket, name)
	return err == nil && unix.ByteSliceToString(i.Driver[:]) == "tun" && unix.ByteSliceToString(i.Bus_info[:]) == "tap"
}

// queues is how many queues of a multi-queue tap are open, by whomever; 0 if that can't
// be told.
func (p *place) queues(name string) int {
	rib, err := syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
	if err != nil {
		return 0
	}
	msgs, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return 0
	}
	for i := range msgs {
		if msgs[i].Header.Type != unix.RTM_NEWLINK {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&msgs[i])
		if err != nil {
			return 0
		}
		found, n := false, 0
		for _, a := range attrs {
			switch a.Attr.Type &^ unix.NLA_F_NESTED {
			case unix.IFLA_IFNAME:
				found = unix.ByteSliceToString(a.Value) == name
			case unix.IFLA_LINKINFO:
				nested(a.Value, func(kind uint16, info []byte) {
					if kind != unix.IFLA_INFO_DATA {
						return
					}
					nested(info, func(kind uint16, v []byte) {
						if (kind == unix.IFLA_TUN_NUM_QUEUES || kind == unix.IFLA_TUN_NUM_DISABLED_QUEUES) && len(v) >= 4 {
							n += int(binary.NativeEndian.Uint32(v))
						}
					})
				})
			}
		}
		if found {
			return n
		}
	}
	return 0
}

// nested calls f for each attribute in b.
func nested(b []byte, f func(kind uint16, v []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[unix.SizeofRtAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}
