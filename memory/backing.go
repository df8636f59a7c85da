package memory

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Backing says what kind of host memory holds the RAM.
type Backing int

const (
	// Anonymous backs RAM by private anonymous memory. It is the default:
	// distributions offer transparent huge pages for it and none for a memfd,
	// and a guest on small pages boots at half the speed.
	Anonymous Backing = iota
	// Memfd backs RAM by a memfd, which can be shared with another process
	// and mapped again.
	Memfd
)

func (b Backing) String() string {
	switch b {
	case Memfd:
		return "memfd"
	case Anonymous:
		return "anonymous"
	}
	return fmt.Sprintf("Backing(%d)", int(b))
}

// Huge says which pages the host should use for RAM.
type Huge int

const (
	// HugeAdvise asks for transparent huge pages (MADV_HUGEPAGE): fewer
	// nested page faults for more resident memory. The host may ignore it.
	HugeAdvise Huge = iota
	// HugeNever asks for small pages (MADV_NOHUGEPAGE): only the pages that
	// the guest touches become resident.
	HugeNever
	// HugeReserved takes 2 MiB pages out of the host's hugetlb pool, all of
	// them at once; [New] fails where the pool has too few.
	HugeReserved
)

func (h Huge) String() string {
	switch h {
	case HugeAdvise:
		return "advise"
	case HugeNever:
		return "never"
	case HugeReserved:
		return "reserved"
	}
	return fmt.Sprintf("Huge(%d)", int(h))
}

// hugeSize is what mappings are aligned to, so that huge pages of host and
// guest line up.
const hugeSize = 2 << 20

// DefaultName is how the mapping is called in /proc/PID/smaps when Config has
// no name: "/memfd:vole-ram" or "[anon:vole-ram]".
const DefaultName = "vole-ram"

// Config says how much RAM a guest has and where the host takes it from.
type Config struct {
	// Size is the amount of RAM in bytes, a positive multiple of PageSize
	// (of 2 MiB with HugeReserved).
	Size    uint64
	Backing Backing
	Huge    Huge
	// Name marks the mapping for tools that read /proc/PID/smaps; empty is
	// DefaultName.
	Name string
}

// ErrSize reports a size that no guest can have.
var ErrSize = errors.New("memory: bad size")

// ErrNoMemory reports that the host does not have the memory asked for.
var ErrNoMemory = errors.New("memory: the host has not enough memory")

// backing owns the mappings of a Guest and the memfd beneath them.
type backing struct {
	fd   int      // -1 for anonymous memory
	maps [][]byte // as mmap returned them: alignment slack included
}

// New maps the RAM of a guest. No page of it is touched. The caller owns the
// Guest and closes it after the last vCPU has stopped.
//
// Errors wrap ErrSize or ErrNoMemory where that is the reason.
func New(cfg Config) (*Guest, error) {
	gran := uint64(PageSize)
	if cfg.Huge == HugeReserved {
		gran = hugeSize
	}
	if cfg.Size == 0 || cfg.Size%gran != 0 || cfg.Size > math.MaxInt64-2*hugeSize-(HighStart-LowTop) {
		return nil, fmt.Errorf("memory: %d bytes is not a positive multiple of %d within the address space: %w", cfg.Size, gran, ErrSize)
	}
	name := cfg.Name
	if name == "" {
		name = DefaultName
	}
	b := &backing{fd: -1}
	if cfg.Backing == Memfd {
		if err := b.openMemfd(name, cfg); err != nil {
			return nil, err
		}
	}
	g := &Guest{backing: b}
	var off uint64
	for _, r := range Layout(cfg.Size) {
		mem, err := b.mapRange(off, r.Size, name, cfg)
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
		g.regions = append(g.regions, Region{GPA: r.GPA, Mem: mem})
		off += r.Size
	}
	return g, nil
}

func (b *backing) openMemfd(name string, cfg Config) error {
	flags := unix.MFD_CLOEXEC
	if cfg.Huge == HugeReserved {
		flags |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
	}
	fd, err := unix.MemfdCreate(name, flags)
	if err != nil {
		return fmt.Errorf("memory: memfd_create for %d bytes of RAM: %w", cfg.Size, err)
	}
	b.fd = fd
	if err := unix.Ftruncate(fd, int64(cfg.Size)); err != nil {
		return errors.Join(hostError("sizing the memfd", cfg, err), b.close())
	}
	return nil
}

// mapRange maps size bytes, from offset off of the memfd, at an address that
// is a multiple of hugeSize.
func (b *backing) mapRange(off, size uint64, name string, cfg Config) ([]byte, error) {
	raw, err := reserve(size + hugeSize)
	if err != nil {
		return nil, hostError("reserving address space", cfg, err)
	}
	b.maps = append(b.maps, raw)
	mem := alignedPart(raw, size)
	if err := mapOver(mem, b.fd, int64(off), cfg.Huge == HugeReserved); err != nil {
		return nil, hostError("mapping it", cfg, err)
	}
	// What follows only advises: a host without it runs the guest as well.
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	switch cfg.Huge {
	case HugeAdvise:
		_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	case HugeNever:
		_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	}
	if b.fd < 0 {
		nameAnonymous(mem, name)
	}
	return mem, nil
}

// hostError says what the host could not do for the RAM, and where to look.
func hostError(doing string, cfg Config, err error) error {
	of := fmt.Sprintf("%d MiB of RAM", cfg.Size>>20)
	if cfg.Huge == HugeReserved {
		of += " out of the host's pool of 2 MiB pages (/proc/sys/vm/nr_hugepages)"
	}
	if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("memory: %s: %s: %w (%w)", of, doing, ErrNoMemory, err)
	}
	return fmt.Errorf("memory: %s: %s: %w", of, doing, err)
}

func (b *backing) close() error {
	var errs []error
	for _, m := range b.maps {
		errs = append(errs, unmap(m))
	}
	b.maps = nil
	if b.fd >= 0 {
		errs = append(errs, unix.Close(b.fd))
		b.fd = -1
	}
	return errors.Join(errs...)
}
