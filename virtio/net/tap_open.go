package net

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What is wrong with a TAP interface. The errors that wrap these name it, and say
// what to do where there is something.
var (
	// ErrTapName is a name that no interface can have.
	ErrTapName = errors.New("no name for an interface")
	// ErrNoTap is an interface that there is not, and that was not to be made.
	ErrNoTap = errors.New("there is no such interface")
	// ErrNotTap is an interface of another kind.
	ErrNotTap = errors.New("the interface is no tap")
	// ErrTapBusy is an interface that another program, or device, uses.
	ErrTapBusy = errors.New("the tap is in use")
	// ErrTapSingleQueue is an interface made for one queue, of which more were asked.
	ErrTapSingleQueue = errors.New("the tap has a single queue")
	// ErrTapPermission is an interface, or the making of one, that this user is not
	// allowed.
	ErrTapPermission = errors.New("no permission to use the tap")
	// ErrNoTun is a kernel without TAP interfaces.
	ErrNoTun = errors.New("the kernel offers no taps")
	// ErrTapGone is what Wait, Receive and Send say while the interface is gone.
	ErrTapGone = errors.New("net: the tap is gone")
)

var errBusy = fmt.Errorf("%w: another process, or device, has it open", ErrTapBusy)

const (
	tunPath = "/dev/net/tun"
	// tapFlags are those of every queue.
	tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	// tapUSO are offloads that the kernel takes together only.
	tapUSO = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

// OpenTap opens a TAP interface, in the network namespace of the thread that calls
// it. The caller closes what it returns, or hands it to New.
func OpenTap(o TapOptions) (*Tap, error) { return openNamed(o, false) }

// openNamed is OpenTap; kernel says that the host's kernel will move the frames.
func openNamed(o TapOptions, kernel bool) (*Tap, error) {
	if o.Pairs == 0 {
		o.Pairs = 1
	}
	t, err := openTap(o, kernel)
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", printable(o.Name), err)
	}
	return t, nil
}

func openTap(o TapOptions, kernel bool) (*Tap, error) {
	switch {
	case !goodName(o.Name):
		return nil, fmt.Errorf("%w: 1 to %d bytes are possible, without spaces, / : and %%", ErrTapName, unix.IFNAMSIZ-1)
	case o.Pairs < 1 || o.Pairs > MaxPairs:
		return nil, fmt.Errorf("%d pairs of queues: 1 to %d are possible", o.Pairs, MaxPairs)
	}
	where, err := here()
	if err != nil {
		return nil, err
	}
	t := &Tap{name: o.Name, pairs: make([]tapPair, o.Pairs), where: where, wanted: o.MTU, active: 1, ended: make(chan struct{})}
	t.stopped.Store(true)
	for i := range t.pairs {
		t.pairs[i].init()
	}
	if kernel {
		if t.events, err = newTapEvents(); err != nil {
			return nil, errors.Join(err, where.close())
		}
	}
	index, err := where.index(o.Name)
	switch missing := errors.Is(err, unix.ENODEV); {
	case missing && !o.Create:
		err = fmt.Errorf("%w: %s makes one", ErrNoTap, t.command())
	case missing || err == nil:
		err = t.open(index)
	}
	if err != nil {
		if kernel {
			err = errors.Join(err, t.events.close())
		}
		return nil, errors.Join(err, where.close())
	}
	if kernel {
		t.count()
		t.passed = traffic{} // before it was opened
		t.watcher.Go(func() { t.events.listen(t.heard) })
	}
	return t, nil
}

// open opens the interface for the first time; index is its number, 0 if it is to be
// made.
func (t *Tap) open(index uint32) error {
	ports, err := t.ports(index)
	if err != nil {
		return err
	}
	for i, p := range ports {
		t.pairs[i].port.Store(p)
	}
	if err := t.learn(ports[0], index == 0); err != nil {
		return errors.Join(err, t.drop())
	}
	if err := t.begin(ports); err != nil {
		return errors.Join(err, t.drop())
	}
	return nil
}

// learn finds out what the interface can do.
func (t *Tap) learn(p *tapPort, made bool) error {
	return p.control(func(fd int) error {
		t.features = FeatureCsum | FeatureHostTSO4 | FeatureHostTSO6 | FeatureHostECN
		for _, try := range []struct {
			bits int
			is   uint64
		}{
			{unix.TUN_F_CSUM, FeatureGuestCsum},
			{unix.TUN_F_CSUM | unix.TUN_F_TSO4, FeatureGuestTSO4},
			{unix.TUN_F_CSUM | unix.TUN_F_TSO6, FeatureGuestTSO6},
			{unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO_ECN, FeatureGuestECN},
			// A kernel that hands out segmented UDP takes it too.
			{unix.TUN_F_CSUM | tapUSO, FeatureGuestUSO4 | FeatureGuestUSO6 | FeatureHostUSO},
		} {
			if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, try.bits) == nil {
				t.features |= try.is
			}
		}
		if made {
			if t.wanted != 0 {
				if err := t.where.setMTU(t.name, t.wanted); err != nil {
					return err
				}
			}
			if err := t.where.bringUp(t.name); err != nil {
				return err
			}
		}
		var err error
		t.mtu, err = t.where.mtu(t.name)
		return err
	})
}

// tunOffloads are the kernel's words for what the driver takes. What the kernel
// takes only together is left out where the driver takes one of it.
func tunOffloads(features uint64) int {
	bits := 0
	for _, f := range []struct {
		is   uint64
		bits int
	}{
		{FeatureGuestCsum, unix.TUN_F_CSUM},
		{FeatureGuestTSO4, unix.TUN_F_TSO4},
		{FeatureGuestTSO6, unix.TUN_F_TSO6},
		{FeatureGuestECN, unix.TUN_F_TSO_ECN},
		{FeatureGuestUSO4 | FeatureGuestUSO6, tapUSO},
	} {
		if features&f.is == f.is {
			bits |= f.bits
		}
	}
	return bits
}

// ports opens the queues of the interface with this number; 0 makes one.
func (t *Tap) ports(index uint32) (ports []*tapPort, err error) {
	defer func() {
		if err != nil {
			for _, p := range ports {
				_ = p.f.Close()
			}
			ports = nil
		}
	}()
	t.multi = len(t.pairs) > 1
	for i := range t.pairs {
		fd, err := t.queue(i == 0 && index == 0)
		if err != nil {
			return ports, err
		}
		p := &tapPort{f: os.NewFile(uintptr(fd), "tap "+t.name)}
		ports = append(ports, p)
		if p.raw, err = p.f.SyscallConn(); err != nil {
			return ports, err
		}
	}
	// The kernel makes what it does not find: the interface may have been deleted
	// since somebody looked.
	now, err := t.where.index(t.name)
	if err == nil && index != 0 && now != index {
		return ports, ErrNoTap
	}
	t.index = now
	// Of many queues the kernel gives some to one who comes and some to another, and
	// each would get a part of the frames.
	if t.multi && t.where.queues(t.name) > len(ports) {
		return ports, errBusy
	}
	return ports, nil
}

// queue opens one queue, as a file descriptor that is the caller's.
func (t *Tap) queue(made bool) (int, error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if t.events == nil {
		flags |= unix.O_NONBLOCK // for the poller
	}
	fd, err := unix.Open(tunPath, flags, 0)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("%w: %s is not there: sudo modprobe tun", ErrNoTun, tunPath)
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("%w: %s can't be opened: sudo chmod 666 %s", ErrTapPermission, tunPath, tunPath)
	case err != nil:
		return -1, &os.PathError{Op: "open", Path: tunPath, Err: err}
	}
	if err := t.join(fd, made); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// join makes an open /dev/net/tun a queue of the interface.
func (t *Tap) join(fd int, made bool) error {
	err := t.setIff(fd, t.multi)
	if errors.Is(err, unix.EINVAL) && !t.multi && t.where.isTap(t.name) {
		// One queue of an interface made for many.
		if err = t.setIff(fd, true); err == nil {
			t.multi = true
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, unix.EBUSY):
		return errBusy
	case errors.Is(err, unix.EPERM) && made:
		return fmt.Errorf("%w: it is not there, and making it takes CAP_NET_ADMIN: %s makes it for this user", ErrTapPermission, t.command())
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: it was made for somebody else: %s makes one for this user, once sudo ip tuntap del dev %s mode tap has deleted it", ErrTapPermission, t.command(), t.name)
	case errors.Is(err, unix.EINVAL) && !t.where.isTap(t.name):
		return fmt.Errorf("%w: it can't be given to a guest; %s, with another name, makes one", ErrNotTap, t.command())
	case errors.Is(err, unix.EINVAL) && t.multi:
		return fmt.Errorf("%w and %d were asked for: sudo ip tuntap del dev %s mode tap; %s makes one that has them", ErrTapSingleQueue, len(t.pairs), t.name, t.command())
	default:
		return fmt.Errorf("attach to it: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, HeaderSize); err != nil {
		return fmt.Errorf("set the size of the header: %w", err)
	}
	return nil
}

func (t *Tap) setIff(fd int, multi bool) error {
	r, err := unix.NewIfreq(t.name)
	if err != nil {
		return err
	}
	flags := uint16(tapFlags)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	r.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
}

// command is what makes an interface that this user may use.
func (t *Tap) command() string {
	multi := ""
	if len(t.pairs) > 1 {
		multi = " multi_queue"
	}
	return fmt.Sprintf("sudo ip tuntap add dev %s mode tap user %d%s", t.name, os.Getuid(), multi)
}

// goodName reports whether the kernel takes a name, as it is: a % would be a number
// of its choice.
func goodName(s string) bool {
	if s == "" || len(s) >= unix.IFNAMSIZ || s == "." || s == ".." {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("/:%", r) })
}

// printable is a name for an error: quoted where it must be.
func printable(s string) string {
	if goodName(s) {
		return s
	}
	return fmt.Sprintf("%.40q", s)
}
