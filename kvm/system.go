package kvm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	defaultPath = "/dev/kvm"
	apiVersion  = 12 // KVM_API_VERSION
)

// System is an open KVM device. Its methods may be called from any goroutine.
type System struct {
	fd       int
	path     string
	mmapSize int
}

// Open opens the KVM device at path; an empty path means /dev/kvm. The caller
// closes it.
//
// A file that is absent or not accessible gives an error that wraps
// fs.ErrNotExist or fs.ErrPermission. One that does not answer as KVM does, of
// whatever type, gives ErrNotKVM; another API version gives ErrVersion.
func Open(path string) (*System, error) {
	if path == "" {
		path = defaultPath
	}
	// O_NONBLOCK means nothing to KVM; it keeps a terminal or a FIFO that
	// stands in its place from holding us up.
	fd, err := openFile(path)
	switch {
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("kvm: %s: %w: %w", path, ErrNotKVM, err)
	case err != nil:
		return nil, fmt.Errorf("kvm: open %s: %w", path, err)
	}
	s := &System{fd: fd, path: path}
	if err := s.init(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return s, nil
}

func openFile(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func (s *System) init() error {
	version, err := ioctlValue(s.fd, kvmGetAPIVersion, 0)
	if err != nil {
		return fmt.Errorf("kvm: %s: %w: KVM_GET_API_VERSION: %w", s.path, ErrNotKVM, err)
	}
	if err := checkVersion(s.path, version); err != nil {
		return err
	}
	size, err := ioctlValue(s.fd, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return opError("KVM_GET_VCPU_MMAP_SIZE", err)
	}
	if size < runPageSize {
		return fmt.Errorf("kvm: %s: KVM_GET_VCPU_MMAP_SIZE: %d bytes cannot hold a struct kvm_run of %d", s.path, size, runPageSize)
	}
	s.mmapSize = size
	return nil
}

func checkVersion(path string, version int) error {
	if version != apiVersion {
		return fmt.Errorf("kvm: %s: %w: %d instead of %d", path, ErrVersion, version, apiVersion)
	}
	return nil
}

// Close closes the device. Machines created from it go on. A second Close does
// nothing.
func (s *System) Close() error {
	fd := s.fd
	if fd < 0 {
		return nil
	}
	s.fd = -1
	return opError("close "+s.path, unix.Close(fd))
}

// Path returns the path that was opened.
func (s *System) Path() string { return s.path }

// Check returns what this kernel says about c: 0 if it lacks it, otherwise 1 or
// the number that belongs to the capability.
func (s *System) Check(c Cap) (int, error) {
	n, err := ioctlValue(s.fd, kvmCheckExtension, uintptr(c))
	if err != nil {
		return 0, opError("KVM_CHECK_EXTENSION "+c.String(), err)
	}
	return n, nil
}

// Require returns nil if this kernel has all of caps, otherwise a
// *MissingError for the first that it lacks.
func (s *System) Require(caps ...Cap) error {
	for _, c := range caps {
		n, err := s.Check(c)
		if err != nil {
			return err
		}
		if n <= 0 {
			return &MissingError{Cap: c}
		}
	}
	return nil
}

// VCPUMmapSize returns the size in bytes of a vCPU's mapping: the run page and
// what follows it.
func (s *System) VCPUMmapSize() int { return s.mmapSize }

// CreateVM creates a machine without memory, vCPUs or interrupt controllers
// (KVM_CREATE_VM, type 0). The caller closes it.
func (s *System) CreateVM() (*VM, error) {
	// The kernel takes every lock of this address space here and gives up
	// with EINTR when a signal comes; ioctlValue then tries again.
	fd, err := ioctlValue(s.fd, kvmCreateVM, 0)
	if err != nil {
		return nil, opError("KVM_CREATE_VM", err)
	}
	return &VM{fd: fd, mmapSize: s.mmapSize, slots: make(map[uint32]uint64)}, nil
}
