package vmm

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/devices/pci"
	"github.com/vole-vmm/vole/kvm"
)

// ioapicPins is how many GSIs KVM's interrupt controllers take: those behind
// them are free for messages.
const ioapicPins = 24

// maxRoutes is how many GSIs KVM routes (KVM_MAX_IRQ_ROUTES).
const maxRoutes = 4096

// msiRouter hands out GSIs that stand for messages, and keeps KVM's routing
// table, which can only be set as a whole.
type msiRouter struct {
	vm  *kvm.VM
	log *slog.Logger

	mu     sync.Mutex
	routes []kvm.IRQRoute // the pins of the interrupt controllers, then messages
	next   uint32
}

// newMSIRouter begins with the table that KVM makes by itself: GSI n is pin n of
// the IOAPIC and, below 16, of the PICs.
func newMSIRouter(vm *kvm.VM, log *slog.Logger) *msiRouter {
	r := &msiRouter{vm: vm, log: log, next: ioapicPins}
	for gsi := range uint32(ioapicPins) {
		switch {
		case gsi < 8:
			r.routes = append(r.routes, kvm.ChipRoute(gsi, kvm.ChipPICMaster, gsi))
		case gsi < 16:
			r.routes = append(r.routes, kvm.ChipRoute(gsi, kvm.ChipPICSlave, gsi-8))
		}
		r.routes = append(r.routes, kvm.ChipRoute(gsi, kvm.ChipIOAPIC, gsi))
	}
	return r
}

// set routes gsi to a message.
func (r *msiRouter) set(gsi uint32, m kvm.MSI) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	route := kvm.MSIRoute(gsi, m)
	for i := range r.routes {
		if r.routes[i].IsMSI && r.routes[i].GSI == gsi {
			old := r.routes[i]
			if r.routes[i] = route; old == route {
				return nil
			}
			err := r.vm.SetGSIRouting(r.routes)
			if err != nil {
				r.routes[i] = old
			}
			return err
		}
	}
	r.routes = append(r.routes, route)
	err := r.vm.SetGSIRouting(r.routes)
	if err != nil {
		r.routes = r.routes[:len(r.routes)-1]
	}
	return err
}

// NewVector implements pci.VectorSource.
func (r *msiRouter) NewVector() (pci.Vector, error) {
	r.mu.Lock()
	gsi := r.next
	if gsi < maxRoutes {
		r.next++
	}
	r.mu.Unlock()
	if gsi >= maxRoutes {
		return nil, fmt.Errorf("%d interrupt messages are taken", maxRoutes-ioapicPins)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd for a message: %w", err)
	}
	return &msiVector{router: r, gsi: gsi, fd: fd}, nil
}

// msiVector is an MSI-X vector: an eventfd which is bound to a GSI while the
// vector is unmasked, and to nothing while it is masked. So what is triggered
// meanwhile stays in the eventfd, and KVM takes it out when it is bound again.
type msiVector struct {
	router *msiRouter
	gsi    uint32
	fd     int
	bound  bool
}

// Program implements pci.Vector.
func (v *msiVector) Program(addr uint64, data uint32) error {
	return v.refused(v.router.set(v.gsi, kvm.MSI{Address: addr, Data: data}))
}

// refused notes what KVM does not do: the guest then waits for an interrupt that
// does not come. A guest can bring it about, by a message that makes no sense.
func (v *msiVector) refused(err error) error {
	if err != nil {
		v.router.log.Debug("KVM refuses an interrupt message", "gsi", v.gsi, "error", err)
	}
	return err
}

// Mask implements pci.Vector.
func (v *msiVector) Mask(masked bool) error {
	if masked != v.bound {
		return nil
	}
	var err error
	if masked {
		err = v.router.vm.DeassignIRQFD(v.fd, v.gsi)
	} else {
		err = v.router.vm.AssignIRQFD(kvm.IRQFD{FD: v.fd, GSI: v.gsi})
	}
	if err == nil {
		v.bound = !masked
	}
	return v.refused(err)
}

// Trigger implements pci.Vector.
func (v *msiVector) Trigger() { kvm.Signal(v.fd) }

// Pending implements pci.Vector.
func (v *msiVector) Pending() bool {
	if v.bound {
		return false
	}
	p := [1]unix.PollFd{{Fd: int32(v.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n > 0
}

// Clear implements pci.Vector.
func (v *msiVector) Clear() {
	if !v.bound {
		var b [8]byte
		_, _ = unix.Read(v.fd, b[:])
	}
}

// Close implements pci.Vector.
func (v *msiVector) Close() error { return errors.Join(v.Mask(true), unix.Close(v.fd)) }
