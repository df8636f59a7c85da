package agent

import (
	"path"

	"golang.org/x/sys/unix"
)

// vsockModule is the one with which there are sockets to the host.
const vsockModule = "vmw_vsock_virtio_transport.ko"

// loadModules loads the files in their order, and takes each away when it is loaded:
// they are memory. It closes sockets as soon as there can be any.
func loadModules(files []string, sockets chan<- struct{}) []string {
	var p problems
	early := false
	for _, name := range files {
		file := "/" + name
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.FinitModule(fd, "", 0)
			unix.Close(fd)
			_ = unix.Unlink(file)
		}
		if err == unix.EEXIST {
			err = nil
		}
		p.check(err, "load the kernel module %s", path.Base(file))
		if path.Base(file) == vsockModule && !early {
			early = true
			close(sockets)
		}
	}
	if !early {
		close(sockets)
	}
	return p
}
