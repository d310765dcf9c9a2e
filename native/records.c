/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * tdb: the plain messages of a value of messages.tdb, many in one call.  The format is in msgd/wire/tdb_record.py.
 *
 * A plain message is a record of version 2 and the record of version 1 that it belongs to, both whole and right.  The
 * first record that is anything else stops it: RecordDecoder takes that one.
 */
#include "records.h"

/* The head of a record; a version 2 record has `struct ids` behind it. */
struct record {
	int32_t version;
	int32_t type;
	int32_t dst_pid;
	int32_t src_pid;
	uint64_t length;
};

struct ids {
	uint32_t dst_task;
	uint32_t src_task;
	uint64_t dst_unique;
	uint64_t src_unique;
};

_Static_assert(sizeof(struct record) == 24 && sizeof(struct ids) == 24, "unpadded");

struct plain {
	struct record ids_head;
	struct ids ids;
	struct record message;
};

_Static_assert(sizeof(struct plain) == 72, "unpadded");

#define MESSAGE_VERSION 1
#define IDS_VERSION 2

static int is_right(const struct record *record, int32_t pid)
{
	return record->dst_pid == pid && record->src_pid > 0 && record->type >= 0;
}

/* Read the two heads that begin here.  Returns whether they are those of a plain message. */
static int read_plain(struct plain *plain, const char *data, Py_ssize_t size, int32_t pid)
{
	if (size < (Py_ssize_t)sizeof(*plain))
		return 0;
	memcpy(plain, data, sizeof(*plain));
	if (plain->ids_head.version != IDS_VERSION || plain->ids_head.length != sizeof(plain->ids))
		return 0;
	if (plain->message.version != MESSAGE_VERSION || !is_right(&plain->ids_head, pid) || !is_right(&plain->message, pid))
		return 0;
	return plain->message.length <= (uint64_t)size - sizeof(*plain);
}

static void set_route(struct route *route, const struct plain *plain, int32_t pid)
{
	route->dst.pid = (uint64_t)pid;
	route->dst.task_id = plain->ids.dst_task;
	route->dst.vnn = NONCLUSTER_VNN;
	route->dst.unique_id = plain->ids.dst_unique;
	route->src.pid = (uint64_t)plain->message.src_pid;
	route->src.task_id = plain->ids.src_task;
	route->src.vnn = NONCLUSTER_VNN;
	route->src.unique_id = plain->ids.src_unique;
}

int are_plain(const char *data, Py_ssize_t size, int32_t pid)
{
	struct plain plain;
	Py_ssize_t position = 0;

	while (position < size) {
		if (!read_plain(&plain, data + position, size - position, pid))
			return 0;
		position += (Py_ssize_t)(sizeof(plain) + plain.message.length);
	}
	return 1;
}

PyObject *next_plain(Addresses *addresses, const char *data, Py_ssize_t size, int32_t pid, Py_ssize_t *position)
{
	const char *bytes = data + *position + sizeof(struct plain);
	struct plain plain;
	struct route route;

	if (!read_plain(&plain, data + *position, size - *position, pid))
		return NULL;
	set_route(&route, &plain, pid);
	*position += (Py_ssize_t)(sizeof(plain) + plain.message.length);
	return new_message(addresses, &route, (uint32_t)plain.message.type, bytes, (Py_ssize_t)plain.message.length);
}

/*
 * split_records(addresses, pid, messages, value, position) -> position
 *
 * Appends the plain messages that begin at `position` to the list; returns where the next record begins.  It stops at
 * one for which there is no memory.
 */
PyObject *split_records(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	Py_ssize_t position, size;
	const char *data;
	long pid;

	(void)module;
	if (count != 5 || !Py_IS_TYPE(args[0], &AddressesType) || !PyList_Check(args[2]) || !PyBytes_Check(args[3])) {
		PyErr_SetString(PyExc_TypeError, "split_records(addresses, pid, messages, value, position)");
		return NULL;
	}
	pid = PyLong_AsLong(args[1]);
	position = PyLong_AsSsize_t(args[4]);
	if (PyErr_Occurred())
		return NULL;
	data = PyBytes_AS_STRING(args[3]);
	size = PyBytes_GET_SIZE(args[3]);
	if (position < 0 || position > size || pid <= 0 || pid > INT32_MAX) {
		PyErr_SetString(PyExc_ValueError, "the position is outside of the value, or the pid is none");
		return NULL;
	}
	for (;;) {
		Py_ssize_t next = position;
		PyObject *message = next_plain((Addresses *)args[0], data, size, (int32_t)pid, &next);
		int failed = !message || PyList_Append(args[2], message);

		Py_XDECREF(message);
		if (failed && PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_MemoryError))
			return NULL;
		if (failed) {
			PyErr_Clear(); /* the twin sees to this one */
			break;
		}
		position = next;
	}
	return PyLong_FromSsize_t(position);
}
