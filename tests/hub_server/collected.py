"""How the Hub of the tests answers for collections."""

import hashlib
import json
import re


class Collections:
    """The routes of collections, for the handler of requests; ``hub.collections``: slug to title and items."""

    def described_collection(self, slug):
        title, items = self.hub.collections[slug]
        listed = [{"_id": str(i), "id": of, "type": kind, "position": i} for i, (of, kind) in enumerate(items)]
        return {
            "slug": slug, "title": title, "owner": {"name": slug.split("/")[0]}, "items": listed, "position": 0,
            "lastUpdated": "2026-01-01T00:00:00.000Z", "private": False, "theme": "green", "upvotes": 0,
        }  # fmt: skip

    def collection(self, slug):
        self.reply(200, self.described_collection(slug))

    def create_collection(self):
        asked, user = json.loads(self.body), self.user()
        if not user or user != (asked["namespace"], "write"):
            return self.error(403, "Forbidden", "You don't have the rights for this")
        if len(asked["title"]) > 59 or len(asked.get("description", "")) > 149:
            return self.complain("a title or description that is too long")
        words = re.sub(r"[^a-z0-9]+", "-", asked["title"].lower())
        slug = f"{asked['namespace']}/{words}-{hashlib.sha1(words.encode()).hexdigest()[:24]}"
        if slug in self.hub.collections:
            return self.reply(409, {"error": "This collection exists", "slug": slug})
        self.hub.collections[slug] = (asked["title"], [])
        return self.reply(200, self.described_collection(slug))

    def add_to_collection(self, slug):
        item = json.loads(self.body)["item"]
        items = self.hub.collections[slug][1]
        if item["id"] not in self.hub.repos:
            return self.error(404, "RepoNotFound", "Repository not found")
        if (item["id"], item["type"]) in items:
            return self.error(409, "Conflict", "Item is in the collection already")
        items.append((item["id"], item["type"]))
        return self.reply(200, self.described_collection(slug))
