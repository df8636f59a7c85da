package pci

import "encoding/binary"

// The fields of struct virtio_pci_cfg_cap behind the capability's first two
// bytes.
const (
	accessBAR    = 2
	accessOffset = 6
	accessLength = 10
	accessData   = 14
	accessSize   = 18
)

// access is VIRTIO_PCI_CAP_PCI_CFG (section 4.1.4.9): a window into the BAR for
// who can only reach configuration space. It holds no state but the registers.
type access struct{ d *Device }

// addAccess adds the window: bar, offset and length are the driver's.
func (d *Device) addAccess() error {
	body := capBody(CapPCI, 0, 0, make([]byte, accessBytes))
	writable := make([]byte, accessSize)
	writable[accessBAR] = 0xff
	for i := accessOffset; i < accessData; i++ {
		writable[i] = 0xff
	}
	_, err := d.fn.AddActiveCapability(capVendor, body, writable, accessData, accessBytes, access{d})
	return err
}

// window decodes what the registers say: an access of 1, 2 or 4 bytes at a
// multiple of its size. What is not that reaches nothing.
func (access) window(body []byte, off, n int) (bar int, at uint64, ok bool) {
	offset, length := binary.LittleEndian.Uint32(body[accessOffset:]), binary.LittleEndian.Uint32(body[accessLength:])
	ok = off == accessData && int(length) == n && (n == 1 || n == 2 || n == 4) && offset%length == 0
	return int(body[accessBAR]), uint64(offset), ok
}

// ReadCapability implements pci.CapabilityHandler.
func (a access) ReadCapability(body []byte, off int, p []byte) {
	n := int(min(binary.LittleEndian.Uint32(body[accessLength:]), accessBytes))
	if n > len(p) {
		return
	}
	if bar, at, ok := a.window(body, off, n); ok {
		a.d.fn.ReadBAR(bar, at, p[:n])
	}
}

// WriteCapability implements pci.CapabilityHandler.
func (a access) WriteCapability(body []byte, off int, p []byte) {
	n := int(min(binary.LittleEndian.Uint32(body[accessLength:]), accessBytes))
	if n > len(p) {
		return
	}
	if bar, at, ok := a.window(body, off, n); ok {
		a.d.fn.WriteBAR(bar, at, p[:n])
	}
}
